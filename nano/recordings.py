"""Corpora of clean speech: Nano's sentences said by many voices → nano/build/recordings/, int16 mono at 16 kHz.

A corpus is the concatenation of its parts, one a group of voices: `<part>.json` tells what each recording is and
`<part>.i16` holds the samples one after another. A part that is there is not built again.
"""

import bisect
import itertools
import logging
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import msgspec
import numpy as np
import numpy.typing as npt
import soxr
from tqdm import tqdm

from .synthesizers import Line, Speech, SynthesizerError, Voice, Word, speak_many, voices
from .training import BUILD
from .world import Exchange, Skill, Split, draw

log = logging.getLogger(__name__)

FOLDER = BUILD / "recordings"
SAMPLE_RATE_HZ = 16000
MARGIN_S = 0.05
SPEECH_LEVEL_DB = -20.0  # RMS over the frames that hold speech
PEAK = 0.98
SILENT_BELOW_DB = -45.0  # under the loudest frame
FRAME_SAMPLES = 160
_ESPEAK_SHARE = 1 / 3
SHORTEST_S_A_LETTER, LONGEST_S_A_LETTER = 0.03, 0.3
_LONGER_S = 0.5  # a slow voice takes its time for "Hi."

Spoken = tuple[Voice, Exchange, Speech]
CorpusName = Literal["train", "heldout-sentences", "heldout-voices"]
TRAIN_MIX: dict[Skill, float] = {
    "sums": 0.45, "digits": 0.22, "talk": 0.12, "again": 0.05, "picture": 0.04, "video": 0.02, "refusal": 0.10,
}  # fmt: skip
TEST_MIX: dict[Skill, float] = dict.fromkeys(TRAIN_MIX, 1 / len(TRAIN_MIX))


@dataclass(frozen=True)
class Part:
    """A group of voices and how many recordings it gives; `voices` are (name or "engine/*", share) pairs."""

    corpus: CorpusName
    name: str
    count: int
    voices: tuple[tuple[str, float], ...]
    sentences: Split = "train"


PARTS = (
    Part("train", "espeak", 9000, (("espeak/*", 1),)),
    Part("train", "flite", 5400, (("flite/slt", 3), ("flite/awb", 3), ("flite/kal16", 2), ("flite/kal", 1))),
    Part("train", "pico", 4000, (("pico/en-US", 1),)),
    Part("train", "festival", 1800, (("festival/slt-hts", 2), ("festival/kal", 1))),
    Part("train", "piper", 900, (("piper/joe", 1),)),
    Part("train", "kokoro", 900, (("kokoro/*", 1),)),
    Part("train", "flite-more", 3600, (("flite/slt", 1), ("flite/awb", 1), ("flite/kal16", 1), ("flite/kal", 1))),
    Part("train", "pico-more", 3000, (("pico/en-US", 1),)),
    Part("train", "festival-more", 1800, (("festival/slt-hts", 1), ("festival/kal", 1))),
    Part("heldout-sentences", "espeak", 210, (("espeak/*", 1),), "heldout"),
    Part("heldout-sentences", "flite", 210, (("flite/slt", 1), ("flite/awb", 1), ("flite/kal16", 1)), "heldout"),
    Part("heldout-sentences", "pico", 105, (("pico/en-US", 1),), "heldout"),
    Part("heldout-sentences", "festival", 105, (("festival/slt-hts", 1), ("festival/kal", 1)), "heldout"),
    Part("heldout-voices", "espeak", 210, (("espeak/*", 1),), "heldout"),
    Part("heldout-voices", "flite", 140, (("flite/rms", 1),), "heldout"),
    Part("heldout-voices", "pico", 140, (("pico/en-GB", 1),), "heldout"),
    Part("heldout-voices", "festival", 140, (("festival/ked", 1),), "heldout"),
)


class Entry(msgspec.Struct, frozen=True):
    """What one recording is and where its samples lie in the part's file."""

    voice: str
    skill: Skill
    prompt: str
    reply: str
    start: int
    length: int
    words: list[Word] | None


@dataclass(frozen=True)
class Recording:
    """One clean recording: (samples,) int16 at 16 kHz, and the words' times in seconds where the synthesizer told."""

    voice: str
    skill: Skill
    prompt: str
    reply: str
    samples: npt.NDArray[np.int16]
    words: list[Word] | None


class Recordings(Sequence[Recording]):
    """A corpus, memory-mapped; `entries` and `lengths` (samples) allow choosing without touching the samples."""

    def __init__(self, parts: Sequence[tuple[list[Entry], npt.NDArray[np.int16]]]) -> None:
        self._samples = [samples for _, samples in parts]
        self._ends = list(itertools.accumulate(len(entries) for entries, _ in parts))
        self.entries = [entry for entries, _ in parts for entry in entries]
        self.lengths = np.array([entry.length for entry in self.entries], dtype=np.int64)

    @classmethod
    def load(cls, corpus: CorpusName, folder: Path = FOLDER) -> "Recordings":
        """Open every part of a corpus that is built; FileNotFoundError where there is none."""
        indexes = sorted((folder / corpus).glob("*.json"))
        if not indexes:
            raise FileNotFoundError(
                f"no recordings in {folder / corpus}; make them with `python -m nearfield.nano recordings`"
            )
        parts = []
        for index in indexes:
            entries = msgspec.json.decode(index.read_bytes(), type=list[Entry])
            parts.append((entries, np.memmap(index.with_suffix(".i16"), dtype=np.int16, mode="r")))
        return cls(parts)

    def shares(self) -> npt.NDArray[np.float64]:
        """(recordings,): how often to draw each, so that many voices are heard and none too often.

        The few of each of espeak's hundreds of voices together make a third; of the natural voices, a rare one is heard
        more than its recordings are many: each has the square root of their number.
        """
        voices = [entry.voice for entry in self.entries]
        counts = Counter(voices)
        espeak = np.array([voice.startswith("espeak/") for voice in voices])
        shares = np.where(espeak, 1.0, [counts[voice] ** -0.5 for voice in voices])
        for kind, share in ((espeak, _ESPEAK_SHARE), (~espeak, 1 - _ESPEAK_SHARE)):
            if kind.any():
                shares[kind] *= share / shares[kind].sum()
        return np.asarray(shares / shares.sum())

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Recording:  # type: ignore[override]
        entry = self.entries[index]
        samples = self._samples[bisect.bisect_right(self._ends, range(len(self))[index])]
        piece = np.asarray(samples[entry.start : entry.start + entry.length])
        return Recording(entry.voice, entry.skill, entry.prompt, entry.reply, piece, entry.words)


def build(corpus: CorpusName, folder: Path = FOLDER) -> Recordings:
    """Build the parts of a corpus that are not there yet and open it."""
    for part in PARTS:
        if part.corpus == corpus and not (folder / corpus / f"{part.name}.json").exists():
            spoken = tqdm(_spoken(part), total=part.count, desc=f"{corpus}/{part.name}", mininterval=5)
            write_part(folder / corpus, part.name, spoken)
    return Recordings.load(corpus, folder)


def recordings_stage() -> None:
    """Build every corpus."""
    for corpus in get_args(CorpusName):
        build(corpus)


def clean(speech: Speech) -> tuple[npt.NDArray[np.int16], list[Word] | None]:
    """Bring speech to 16 kHz, one level and short margins: (samples,) int16, words shifted with it."""
    samples = speech.samples
    if speech.sample_rate_hz != SAMPLE_RATE_HZ:
        samples = soxr.resample(samples, speech.sample_rate_hz, SAMPLE_RATE_HZ, quality="HQ")
    frames = samples[: len(samples) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
    power = np.mean(frames.astype(np.float64) ** 2, axis=1)
    if len(power) == 0 or power.max() < 1e-8:
        raise SynthesizerError("the speech is silent")
    if speech.words:  # some voices hum before the first word
        seconds = np.arange(len(power)) * FRAME_SAMPLES / SAMPLE_RATE_HZ
        power[(seconds < speech.words[0][1] - 0.02) | (seconds > speech.words[-1][2] + MARGIN_S)] = 0
    heard = np.flatnonzero(power > power.max() * 10 ** (SILENT_BELOW_DB / 10))
    level = np.sqrt(power[heard].mean())
    margin = round(MARGIN_S * SAMPLE_RATE_HZ)
    first, last = heard[0] * FRAME_SAMPLES - margin, (heard[-1] + 1) * FRAME_SAMPLES + margin
    piece = np.zeros(last - first, np.float32)  # silence where the speech begins or ends without a margin
    kept = samples[max(first, 0) : last]
    piece[max(-first, 0) : max(-first, 0) + len(kept)] = kept
    gain = min(10 ** (SPEECH_LEVEL_DB / 20) / level, PEAK / np.abs(piece).max())

    def moved(time_s: float) -> float:
        return float(np.clip(time_s - first / SAMPLE_RATE_HZ, 0, len(piece) / SAMPLE_RATE_HZ))

    words = speech.words and [(word, moved(start), moved(end)) for word, start, end in speech.words]
    return np.round(piece * gain * 32767).astype(np.int16), words


def write_part(folder: Path, name: str, spoken: Iterable[Spoken]) -> None:
    """Clean and keep what was spoken, under other names first, so that what bears the part's name is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    half = folder / f"{name}.i16.partial"
    entries: list[Entry] = []
    start = 0
    with half.open("wb") as file:
        for voice, exchange, speech in spoken:
            samples, words = clean(speech)
            took_s = len(samples) / SAMPLE_RATE_HZ
            letters = len(exchange.prompt)
            if not SHORTEST_S_A_LETTER * letters < took_s < LONGEST_S_A_LETTER * letters + _LONGER_S:
                raise SynthesizerError(
                    f"{voice.name} took {took_s:.2f} s for {exchange.prompt!r}: cut off or drawn out"
                )
            entries.append(
                Entry(voice.name, exchange.skill, exchange.prompt, exchange.reply, start, len(samples), words)
            )
            file.write(samples.tobytes())
            start += len(samples)
    half.replace(folder / f"{name}.i16")
    index = folder / f"{name}.json.partial"
    index.write_bytes(msgspec.json.encode(entries))
    index.replace(folder / f"{name}.json")
    log.info("%s/%s: %d recordings, %.2f hours", folder.name, name, len(entries), start / SAMPLE_RATE_HZ / 3600)


def _spoken(part: Part) -> Iterator[Spoken]:
    """Draw the part's sentences, deal them to its voices, and speak them voice by voice."""
    rng = random.Random(f"{part.corpus}/{part.name}")
    mix = TRAIN_MIX if part.corpus == "train" else TEST_MIX
    dealt: dict[Voice, list[Skill]] = {}
    available = _voices(part)
    for skill in rng.choices(list(mix), list(mix.values()), k=part.count):
        (voice,) = rng.choices([voice for voice, _ in available], [share for _, share in available])
        dealt.setdefault(voice, []).append(skill)
    for voice, skills in dealt.items():
        exchanges = [draw(skill, rng, part.sentences) for skill in skills]
        lines = [_line(exchange.prompt, voice, part.corpus, rng) for exchange in exchanges]
        for exchange, speech in zip(exchanges, speak_many(voice, lines), strict=True):
            yield voice, exchange, speech


def _line(prompt: str, voice: Voice, corpus: CorpusName, rng: random.Random) -> Line:
    """Vary how a prompt is said; in training the few natural voices become many by the size of the speaker."""
    size = 2 ** rng.uniform(-0.25, 0.25) if corpus == "train" and voice.engine != "espeak" else 1.0
    return Line(prompt, 2 ** rng.uniform(-0.32, 0.32), 2 ** rng.uniform(-0.25, 0.25), rng.uniform(0.5, 1.5), size)


def _voices(part: Part) -> list[tuple[Voice, float]]:
    """The part's voices with their shares; every name must be a voice of the corpus's split."""
    known = voices("heldout" if part.corpus == "heldout-voices" else "train")
    chosen: list[tuple[Voice, float]] = []
    for name, share in part.voices:
        matching = [voice for voice in known if name in (voice.name, f"{voice.engine}/*")]
        if not matching:
            raise SynthesizerError(
                f"part {part.corpus}/{part.name} wants voice {name!r}, which is not among that split's voices"
            )
        chosen += [(voice, share / len(matching)) for voice in matching]
    return chosen
