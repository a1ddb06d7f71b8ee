"""What each way to quantize nano's decoders to 4 bits costs in right answers: one run, the same held-out items for all.

    python docs/measurements/quantized_nano.py > docs/measurements/quantized_nano.txt

Thinker and Talker at 4 bits in groups of 128, calibrated on nano/calibration; everything else, and the first line's
decoders, in float32, INT4 products with int8 activations as deployed. Answers: the exact ones among all typed, spoken
and shown held-out items (`nano/heldout`). Words: those of the spoken replies that pocketsphinx recognises, both voices.
Needs the extra `[train]`.
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from nearfield.calibrate.quantize import Settings, quantize_checkpoint
from nearfield.calibrate.samples import read_samples
from nearfield.export.export import ExportOptions, export_bundle
from nearfield.nano.calibration import FOLDER
from nearfield.nano.evaluate import AIMS, CHECKPOINT, MAX_TOKENS, THREADS, Answerer, Judge, listened
from nearfield.nano.questions import load
from nearfield.nano.recogniser import Recogniser
from nearfield.runtime.events import TurnEnd
from nearfield.runtime.messages import Message
from nearfield.runtime.omni import Omni

METHODS = ("float32", "rtn", "awq", "gptq", "awq-gptq")
TEXT = ("sentences", "voices", "typed", "again", "picture", "video", "refusal")


def bundle_of(method: str, folder: Path) -> Path:
    """Quantize and export."""
    source, bits = CHECKPOINT, 32
    if method != "float32":
        source, bits = folder / method, 4
        settings = Settings(method=method, bits=4, threads=1)
        quantize_checkpoint(CHECKPOINT, source, read_samples(FOLDER), settings, lambda *_: None)
    export_bundle(source, folder / f"{method}-bundle", ExportOptions(bits=bits, float_type="float32"))
    return folder / f"{method}-bundle"


def answerer(omni: Omni) -> Answerer:
    """The bundle's greedy answers."""

    def answer(asked: Sequence[Message]) -> str:
        events = omni.respond(asked, speak=False, max_tokens=MAX_TOKENS)
        return next(event.text for event in events if isinstance(event, TurnEnd))

    return answer


def main() -> None:
    """Print a line a method."""
    items = {task: [item for item in load() if item.task == task] for task in AIMS}
    print(f"{'method':<10} {'answers':>16} {'':>6} {'transcripts':>12} {'words spoken':>13} {'quantized in':>13}")
    with tempfile.TemporaryDirectory() as folder:
        for method in METHODS:
            started = time.perf_counter()
            omni = Omni.load(bundle_of(method, Path(folder)), threads=THREADS)
            took = time.perf_counter() - started
            judge = Judge(answerer(omni))
            scores = [judge.score(items[task]) for task in TEXT]
            right, total = sum(score.right for score in scores), sum(score.total for score in scores)
            written = judge.score(items["transcript"])
            heard = [
                judge.heard("speech", voice, listened(omni, voice, items["speech"], Recogniser(), []))
                for voice in omni.voices
            ]
            words = sum(score.right for score in heard) / sum(score.total for score in heard)
            print(
                f"{method:<10} {right:>8} of {total:>4} {100 * right / total:>5.1f}% {100 * written.share:>11.1f}% "
                f"{100 * words:>12.1f}% {took:>11.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(main())
