"""Festival as a program: text → speech at the voice's rate (16 or 32 kHz) with the time of every word.

Many lines go through one run of the program: it is told to write a sound file a line and to print each word's times.
"""

import functools
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import soundfile

from .speech import Line, Speech, SynthesizerError, Word, spoken_words

VOICES = {"kal": "kal_diphone", "ked": "ked_diphone", "slt-hts": "cmu_us_slt_arctic_hts"}
PACKAGES = {"kal": "festvox-kallpc16k", "ked": "festvox-kdlpc16k", "slt-hts": "festvox-us-slt-hts"}
LINES_A_RUN = 100
_SECONDS_A_LINE = 20
_OWN_STRETCH = 1.1  # of the diphone voices
_OWN_PITCH = (105.0, 14.0)  # mean and deviation in Hz, likewise

_SAY = """
(define (say text file)
  (set! utt (SynthText text))
  (utt.save.wave utt file 'riff)
  (format t "%s" file)
  (mapcar (lambda (w) (format t "|%s %f %f" (item.name w) (item.feat w "word_start") (item.feat w "word_end")))
          (utt.relation.items utt 'Word))
  (format t "\\n"))
"""


class Festival:
    """The program."""

    def __init__(self) -> None:
        program = shutil.which("festival")
        if program is None:
            raise SynthesizerError("Festival is missing: apt-get install festival")
        self._program = program

    def speak_many(self, key: str, lines: Sequence[Line]) -> Iterator[Speech]:
        """Speak the lines in one voice, in order; the HTS voice keeps its own pitch and intonation."""
        if key not in VOICES:
            raise SynthesizerError(f"Festival has no voice {key!r}; there are {', '.join(VOICES)}")
        for first in range(0, len(lines), LINES_A_RUN):
            yield from self._run(key, lines[first : first + LINES_A_RUN])

    def _run(self, key: str, lines: Sequence[Line]) -> Iterator[Speech]:
        with tempfile.TemporaryDirectory() as folder:
            files = [f"{folder}/{number}.wav" for number in range(len(lines))]
            commands = [f"(voice_{VOICES[key]})", _SAY]
            for line, file in zip(lines, files, strict=True):
                text = line.text.replace("\\", "").replace('"', "")
                commands += [*_settings(key, line), f'(say "{text}" "{file}")']
            script = Path(folder) / "say.scm"
            script.write_text("\n".join(commands), encoding="utf-8")
            command = [self._program, "-b", str(script)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS_A_LINE * len(lines))
            told = dict(row.split("|", 1) for row in done.stdout.splitlines() if "|" in row)
            if done.returncode != 0 or set(told) != set(files):
                raise SynthesizerError(
                    f"Festival failed in voice {key} (apt-get install {PACKAGES[key]}): {done.stderr.strip()}"
                )
            for line, file in zip(lines, files, strict=True):
                samples, rate_hz = soundfile.read(file, dtype="float32")
                yield Speech(samples, rate_hz, _words(line.text, told[file]))


def _settings(key: str, line: Line) -> list[str]:
    """Scheme that sets a line's rate, and for the diphone voices its pitch."""
    if key == "slt-hts":
        own = "cmu_us_slt_arctic_hts::hts_engine_params"
        return [f'(set! hts_engine_params (append {own} (list (list "-r" {line.rate:.3f}))))']
    mean, deviation = _OWN_PITCH[0] * line.pitch, _OWN_PITCH[1] * line.pitch * line.intonation
    return [
        f"(Parameter.set 'Duration_Stretch {_OWN_STRETCH / line.rate:.3f})",
        f"(set! int_lr_params '((target_f0_mean {mean:.1f}) (target_f0_std {deviation:.1f})"
        " (model_f0_mean 170) (model_f0_std 34)))",
    ]


def _words(text: str, told: str) -> list[Word] | None:
    """Read "What 0.22 0.39|is 0.39 0.52"; None where Festival said other words than the text has."""
    said: list[Word] = []
    for item in told.split("|"):
        word, start, end = item.split()
        if word.startswith("'") and said:  # "what" "'s"
            said[-1] = (said[-1][0] + word.lower(), said[-1][1], float(end))
        else:
            said.append((word.lower(), float(start), float(end)))
    return said if [word for word, _, _ in said] == [word for word, _ in spoken_words(text)] else None


@functools.cache
def engine() -> Festival:
    """The one engine of this process."""
    return Festival()
