"""What each way to quantize nano's decoders to 4 bits costs in right answers: one run, the same held-out items for all.

    python docs/measurements/quantized_nano.py > docs/measurements/quantized_nano.txt

draws docs/measurements/quantized_nano.png as well: perplexity by method, and the error of every Linear.

Thinker and Talker at 4 bits in groups of 128, calibrated on nano/calibration; everything else, and the first line's
decoders, in float32, INT4 products with int8 activations as deployed. Answers: the exact ones among all typed, spoken
and shown held-out items (`nano/heldout`). Perplexity: of the right replies to them, token by token. Words: those of the
spoken replies that pocketsphinx recognises, both voices, each reply with SEEDS seeds, because the Talker samples: ± is
the standard error over the replies.
Needs the extra `[train]`.
"""

import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from nearfield.calibrate.assemble import REPORT
from nearfield.calibrate.quantize import Settings, quantize_checkpoint
from nearfield.calibrate.samples import read_samples
from nearfield.export.export import ExportOptions, export_bundle
from nearfield.nano.calibration import FOLDER
from nearfield.nano.evaluate import AIMS, CHECKPOINT, MAX_TOKENS, THREADS, Answerer, Judge, listened
from nearfield.nano.questions import Item, load, messages
from nearfield.nano.recogniser import Recogniser, word_errors, words
from nearfield.runtime.events import TurnEnd
from nearfield.runtime.messages import Message
from nearfield.runtime.omni import Omni

METHODS = ("float32", "rtn", "awq", "gptq", "awq-gptq")
SEEDS = 5
TEXT = ("sentences", "voices", "typed", "again", "picture", "video", "refusal")
DRAWING = Path(__file__).with_suffix(".png")


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


def surprise(omni: Omni, item: Item) -> list[float]:
    """Of each token of the right reply to an item, its end too: −log of the probability the Thinker gave it."""
    thinker = omni.parts.thinker
    list(omni.respond(messages(item), speak=False, max_tokens=1))  # one token, not read back: the prompt was
    nats = []
    for token in [*omni.parts.tokenizer.encode(item.reply), thinker.settings.eos_token_ids[0]]:
        logits = thinker.logits[0].astype(np.float64)
        nats.append(float(np.logaddexp.reduce(logits) - logits[token]))
        thinker.step(token)
    return nats


def words_spoken(omni: Omni, items: Sequence[Item]) -> tuple[float, float]:
    """Share of the spoken words that are recognised, and its standard error (of a ratio, replies drawn by chance)."""
    right, total = [], []
    recogniser = Recogniser()
    for voice in omni.voices:
        for run in range(SEEDS):
            for _, text, found in listened(omni, voice, items, recogniser, [], first_seed=run * len(items)):
                total.append(len(words(text)))
                right.append(total[-1] - word_errors(words(text), found))
    share = sum(right) / sum(total)
    left = np.array(right) - share * np.array(total)
    return share, float(np.std(left) * math.sqrt(len(left)) / sum(total))


def draw(perplexity: dict[str, float], errors: dict[str, dict[str, float]]) -> None:
    """Perplexity by method on the left, the error of every Linear on the right."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), width_ratios=(1, 2), layout="constrained")
    left.bar(list(perplexity), list(perplexity.values()), color="#4477aa")
    left.set_ylim(1, 1 + 1.25 * (max(perplexity.values()) - 1))
    left.bar_label(left.containers[0], fmt="%.4f", fontsize=8)
    left.set_title("perplexity of the right replies")
    for method, by_linear in errors.items():
        right.semilogy(list(by_linear.values()), marker=".", label=method)
    right.set_xticks(range(len(by_linear)), list(by_linear), rotation=90, fontsize=6)
    right.set_title("share of each Linear's output energy that 4 bits change")
    right.legend()
    figure.savefig(DRAWING, dpi=110)


def linear_errors(folder: Path) -> dict[str, float]:
    """Part, layer and Linear → error, from the report a quantized checkpoint holds."""
    errors = json.loads((folder / f"{REPORT}.json").read_text(encoding="utf-8"))["errors"]
    return {
        f"{part} {layer} {name}": error
        for part, layers in errors.items()
        for layer, linears in layers.items()
        for name, error in linears.items()
    }


def main() -> None:
    """Print a line a method."""
    perplexity: dict[str, float] = {}
    errors: dict[str, dict[str, float]] = {}
    items = {task: [item for item in load() if item.task == task] for task in AIMS}
    names = f"{'transcripts':>12} {'words spoken':>13} {'perplexity':>11} {'quantized in':>13}"
    print(f"{'method':<10} {'answers':>16} {'':>6} {names}")
    with tempfile.TemporaryDirectory() as folder:
        for method in METHODS:
            started = time.perf_counter()
            omni = Omni.load(bundle_of(method, Path(folder)), threads=THREADS)
            took = time.perf_counter() - started
            judge = Judge(answerer(omni))
            scores = [judge.score(items[task]) for task in TEXT]
            right, total = sum(score.right for score in scores), sum(score.total for score in scores)
            written = judge.score(items["transcript"])
            share, error = words_spoken(omni, items["speech"])
            nats = [nat for task in TEXT for item in items[task] for nat in surprise(omni, item)]
            perplexity[method] = math.exp(sum(nats) / len(nats))
            if method != "float32":
                errors[method] = linear_errors(Path(folder) / method)
            print(
                f"{method:<10} {right:>8} of {total:>4} {100 * right / total:>5.1f}% {100 * written.share:>11.1f}% "
                f"{100 * share:>6.1f}% ± {100 * error:>3.1f} {perplexity[method]:>11.4f} {took:>11.0f} s",
                flush=True,
            )
    draw(perplexity, errors)


if __name__ == "__main__":
    sys.exit(main())
