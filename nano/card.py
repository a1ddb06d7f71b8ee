"""The model card: nano/checkpoint/README.md and its training curves, written from what training and evaluation left.

Inputs: nano/build (corpora, curves, scores.json), the checkpoint's configuration, the bundle's manifest, the held-out
items → outputs: README.md and curves.png in nano/checkpoint. Every figure comes from those files; only words are here.
Curves are kept in nano/curves, in few rows each: nano/build may be lost, and what the weights went through is not.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ..apps.cli.common import DEMO_BUNDLE, size
from ..errors import NearfieldError
from ..export.checkpoint import Checkpoint
from ..runtime.bundle import Bundle
from ..runtime.files import write_bytes_atomically
from .augment import LEVEL_DB, SNR_DB, SPEED_SPAN
from .evaluate import MAY_LOSE
from .hear import HARSH_SNR_DB
from .questions import HELDOUT, load
from .recordings import FOLDER, SAMPLE_RATE_HZ, Recordings
from .scores import Scores
from .sentences import COLOURS, REFUSAL, SHAPES
from .training import CHECKPOINT, STATES

log = logging.getLogger(__name__)

ENGINE_LICENCES = {
    "espeak": "eSpeak NG: the program is GPL-3.0-or-later; its output is not covered by it",
    "flite": "CMU Flite and its voices: a BSD-like licence of Carnegie Mellon University",
    "festival": "Festival voices kal and ked (Edinburgh, MIT-like), slt-hts (Carnegie Mellon, BSD-like)",
    "pico": "SVOX Pico: Apache-2.0",
    "piper": "Piper's voice joe: MIT package, CC0 recordings",
    "kokoro": "Kokoro-82M: Apache-2.0",
}
"""As the packages state them: /usr/share/doc/*/copyright, the metadata of the Python and npm packages."""

_INTRODUCTION = f"""# Nano

A model of exactly the Qwen2.5-Omni architecture with tiny dimensions, trained by the Nearfield project from scratch. It
hears, sees, reads, writes and speaks English within a small world, loads in transformers
(`Qwen2_5OmniForConditionalGeneration.from_pretrained`, `Qwen2_5OmniProcessor.from_pretrained`) and goes through
`nearfield export` as the published models do. It is there to try Nearfield without a download, and to give its tests a
real signal; it is no assistant.

It answers, spoken or typed: sums and differences from 0 to 99; a string of one to five digits, said back; greetings and
questions about itself; "say that again"; what a picture shows ({len(COLOURS)} colours, {len(SHAPES)} shapes); which way
a shape moves in a short video; speech to be written down, when the system prompt or the turn asks for it. To anything
else it says "{REFUSAL}"

This card is written by `python -m nearfield.nano card`; no figure in it is typed by hand."""

_READING = f"""The interval is where the true share lies with 95 % confidence if the items are a random sample (Wilson);
words of one sentence are not independent, so for words it is somewhat wider in truth. "At least" is what the project
asks; with changed recordings that is {100 * MAY_LOSE:g} points below the same recordings unchanged. The two right
columns are the checkpoint itself in transformers, float32, greedy, on the same items. Spoken replies are heard by
pocketsphinx with a grammar of the replies; "natural speech" is what it makes of the voices nano learnt from, saying
such replies."""

_DATA = f"""All speech is synthetic: sentences of nano's world spoken by several synthesizers at varying rate and pitch,
and in training disturbed anew each time (speed and pitch ±{100 * SPEED_SPAN:g} %, level ±{LEVEL_DB:g} dB, noise of
several colours {SNR_DB[0]:g} to {SNR_DB[1]:g} dB below the speech, in one part {HARSH_SNR_DB[0]:g} to
{HARSH_SNR_DB[1]:g} dB, small rooms, narrower bands, pauses, longer and shorter throats). Whole voices are held out, and
were looked at while this recipe was found. Held out are also all prompts about one in ten of the sums and of the digit
strings, spoken or typed, and words and frames of the sentences to refuse; the table of sums itself ("Seven plus four is
eleven.") is learnt whole, without prompts. Pictures and clips are drawn: colour, shape, background and size or
direction together make a combination, one in ten of which is held out."""

_LIMITS = """- Its last stages still gained when they ended, and some of the scores above are too low for that.
- These weights are of several sessions. The code above is what they ended with, but the first two parts of stage hear
  were run before words that only ever begin a sentence had a class of their own, and mostly on two voices and
  espeak's; the first part of see saw pictures half as wide; the Talker's first stage knew the Thinker of reason's
  first part; the first part of understand had fewer repeated digits, sums out of range and clipped speech, and its
  second no long conversations until step 1,170; its first two heard less clipped speech, and before its ninth,
  numbers that sound alike did not count as hard. The first stage of the Talker and the first two parts of
  talker-final had only the first part of the lines to learn from, and each part of talker-final knew the Thinker as
  it was then. The Thinker and its towers are the mean of what the last three parts of understand ended with.
  Between its seventh and its eighth part the training states were lost, and it went on from the checkpoint, in
  bfloat16 (`nano/restore.py`).
- English within the world above, and nothing else; it was taught to refuse the rest, not to judge it.
- It has heard synthesizers only. Human voices, accents, far microphones, music and several speakers are untried.
- Pictures are plain drawings of one shape. Photographs mean nothing to it.
- Its two voices were learnt from two synthetic ones, at a 24 kHz rate that they do not fill.
- A grammar forces the recogniser to hear some valid reply: that score tells words of the world apart, and is no measure
  of how natural the speech sounds."""

CURVES = Path(__file__).parent / "curves"
_KEPT_ROWS = 120
_PLOTS_ACROSS = 4
_SMOOTHED_ROWS = 9
_COLOURS = 32  # of the PNG: it stays at some tens of kilobytes


def write_card(folder: Path = CHECKPOINT, bundle: Path = DEMO_BUNDLE) -> Path:
    """Write the card and its curves. Raises `NearfieldError` naming the stage to run where something is missing."""
    scores = Scores.load()
    if scores.bundle_sha256 != Scores.identity(bundle):
        raise NearfieldError(f"{bundle} is not the bundle the scores are of: run `python -m nearfield.nano evaluate`")
    for file in STATES.glob("*.csv"):
        keep_curve(read_curve(file), CURVES / file.name)
    curves = {file.stem: read_curve(file) for file in sorted(CURVES.glob("*.csv"))}
    write_bytes_atomically(folder / "curves.png", plot({name: curve for name, curve in curves.items() if curve[1:]}))
    sections = [
        _INTRODUCTION,
        "## Scores\n\n" + scores_section(scores),
        "## Sizes\n\n" + _sizes(folder, bundle),
        "## Training data\n\n" + _data(),
        "## Training\n\n" + training_section(curves),
        "## Limits\n\n" + _LIMITS,
        "## Licences\n\n" + _licences(),
    ]
    card = folder / "README.md"
    write_bytes_atomically(card, ("\n\n".join(sections).rstrip() + "\n").encode())
    return card


def main() -> None:
    """Write the card of the shipped checkpoint."""
    log.info("%s", write_card())


def read_curve(file: Path) -> list[dict[str, float]]:
    """The rows of a training curve. What a run did after its last state is left out: it was done again."""
    rows: list[dict[str, float]] = []
    with file.open(newline="", encoding="utf-8") as lines:
        for line in csv.DictReader(lines):
            row = {key: float(value) for key, value in line.items()}
            while rows and rows[-1]["step"] >= row["step"]:
                rows.pop()
            rows.append(row)
    return rows


def keep_curve(curve: Sequence[Mapping[str, float]], file: Path) -> None:
    """Write steps, seconds and losses of a curve, the mean of several rows in one where there are many."""
    together = math.ceil(len(curve) / _KEPT_ROWS)
    lines = ["step,seconds,loss"]
    for start in range(0, len(curve), together):
        rows = curve[start : start + together]
        loss = sum(row["loss"] for row in rows) / len(rows)
        lines.append(f"{rows[-1]['step']:.0f},{rows[-1]['seconds']:.0f},{loss:.4g}")
    write_bytes_atomically(file, ("\n".join(lines) + "\n").encode())


def plot(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> bytes:
    """All stages' losses over their steps, as a small PNG."""
    rows = math.ceil(len(curves) / _PLOTS_ACROSS)
    figure = Figure(figsize=(3 * _PLOTS_ACROSS, 2.3 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for index, (name, curve) in enumerate(curves.items()):
        axes = figure.add_subplot(rows, _PLOTS_ACROSS, index + 1, title=name, yscale="log")
        steps, losses = [row["step"] for row in curve], [row["loss"] for row in curve]
        axes.plot(steps, losses, color="0.8", linewidth=0.6)
        axes.plot(steps, _smoothed(losses), color="tab:blue", linewidth=1.2)
        axes.grid(alpha=0.3)
    drawn, file = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, dpi=80, format="png")
    Image.open(drawn).convert("RGB").quantize(_COLOURS).save(file, "PNG", optimize=True)
    return file.getvalue()


def scores_section(scores: Scores) -> str:
    """What `make nano-eval` printed, as Markdown."""
    head = ["", "", "right", "%", "95 % interval", "at least", "transformers, float32", "difference"]
    rows = []
    for score in scores.scores:
        low, high = score.interval
        reference, difference = score.reference_right, score.reference_difference
        rows.append(
            [
                score.name,
                score.condition,
                f"{score.right} of {score.total} {score.unit}",
                f"**{100 * score.share:.1f}**" + (" (too low)" if score.misses() else ""),
                f"{100 * low:.1f} – {100 * high:.1f}",
                "" if score.limit is None else f"{100 * score.limit:.1f}",
                "" if reference is None else f"{100 * reference / score.total:.1f}",
                "" if difference is None else f"{100 * difference:+.1f}",
            ]
        )
    missed = scores.missed()
    verdict = (
        f"{len(missed)} of {len(scores.scores)} scores are lower than they must be."
        if missed
        else "Every score is what it must be."
    )
    return (
        f"{verdict} Exported bundle through the runtime on held-out data: {scores.machine}, {scores.threads} threads, "
        f"{scores.seconds / 60:.0f} minutes. A silent turn takes {scores.turn_ms:.0f} ms (median); a spoken one "
        f"{scores.realtime_factor:.2f} of its speech's length.\n\n{_READING}\n\n{markdown([head, *rows])}"
    )


def training_section(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Stages, steps, hours and last losses."""
    rows = [["stage", "steps", "hours", "loss at the end"]]
    for name, curve in curves.items():
        last = curve[-1]
        loss = _smoothed([row["loss"] for row in curve])[-1]
        rows.append([name, f"{last['step']:.0f}", f"{last['seconds'] / 3600:.2f}", f"{loss:.4g}"])
    hours = sum(curve[-1]["seconds"] for curve in curves.values()) / 3600
    return (
        f"`make nano` trains everything from scratch in {len(curves)} stages, {hours:.1f} hours in all one after the "
        "other, on two CPU cores that other work shared. Each stage is seeded and can be stopped and resumed.\n\n"
        f"{markdown(rows)}\n\n![Training curves](curves.png)\n\nOf stages that have no curve here the figures alone "
        "were kept, and [their picture](curves-earlier.png)."
    )


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _smoothed(values: Sequence[float]) -> list[float]:
    return [
        sum(values[max(0, i - _SMOOTHED_ROWS + 1) : i + 1]) / min(i + 1, _SMOOTHED_ROWS) for i in range(len(values))
    ]


def _sizes(folder: Path, bundle: Path) -> str:
    """Parameters and dimensions by part, bytes of the checkpoint and of the bundle."""
    manifest = Bundle.open(bundle).manifest
    rows = [["part", "parameters", "in the bundle"]]
    for name, part in manifest.components.items():
        file_bytes = sum(manifest.files[file].size_bytes for file in (part.graph, part.data))
        kind = part.dtype if part.quantization is None else f"INT{part.quantization.bits}, {part.dtype}"
        rows.append([name, f"{part.parameters:,}", f"{size(file_bytes)}, {kind}"])
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    weights_bytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    bundle_bytes = sum(file.stat().st_size for file in bundle.iterdir())
    tensors = len(Checkpoint.open(folder).names)
    total = sum(part.parameters for part in manifest.components.values())
    return (
        f"{total:,} parameters in {tensors} tensors: {size(weights_bytes)} as checkpoint, {size(bundle_bytes)} as "
        f"bundle. Vocabulary {manifest.thinker.vocab_size}; speech codes {manifest.token2wav.code_count}; voices "
        f"{' and '.join(sorted(manifest.voices))}.\n\n{markdown(rows)}\n\n{_dimensions(config)}"
    )


def _dimensions(config: Mapping[str, Mapping[str, Mapping[str, object]]]) -> str:
    thinker, voice = config["thinker_config"], config["token2wav_config"]
    text, audio, vision = (thinker[f"{name}_config"] for name in ("text", "audio", "vision"))
    talker: Mapping[str, object] = config["talker_config"]
    dit, vocoder = voice["dit_config"], voice["bigvgan_config"]
    return markdown(
        [
            ["part", "width", "layers", "heads", "feed-forward"],
            _row("Thinker", text, "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
            _row("audio tower", audio, "d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim"),
            _row("vision tower", vision, "hidden_size", "depth", "num_heads", "intermediate_size"),
            _row("Talker", talker, "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
            _row("DiT", dit, "hidden_size", "num_hidden_layers", "num_attention_heads", "ff_mult"),
            _row("BigVGAN", vocoder, "upsample_initial_channel", "", "", ""),
        ]
    )


def _row(name: str, settings: Mapping[str, object], *keys: str) -> list[str]:
    return [name, *(str(settings.get(key, "")) for key in keys)]


def _data() -> str:
    """Recordings and hours by engine, and what is held out."""
    rows = [["corpus", "synthesizer", "voices", "recordings", "minutes"]]
    for corpus in ("train", "heldout-sentences", "heldout-voices"):
        rows += [[corpus, *row] for row in _corpus(Recordings.load(corpus, FOLDER))]
    tasks = Counter(item.task for item in load(HELDOUT))
    counted = ", ".join(f"{task} {count}" for task, count in tasks.items())
    return f"{_DATA}\n\n{markdown(rows)}\n\nHeld-out items kept in `nano/heldout` ({_tree_size(HELDOUT)}): {counted}."


def _corpus(corpus: Recordings) -> Iterable[list[str]]:
    by_engine: dict[str, list[tuple[str, int]]] = {}
    for entry in corpus.entries:
        by_engine.setdefault(entry.voice.partition("/")[0], []).append((entry.voice, entry.length))
    for engine, spoken in sorted(by_engine.items()):
        names = sorted({voice.partition("/")[2] for voice, _ in spoken})
        told = ", ".join(names) if len(names) <= 6 else str(len(names))
        minutes = sum(length for _, length in spoken) / SAMPLE_RATE_HZ / 60
        yield [engine, told, f"{len(spoken):,}", f"{minutes:.0f}"]


def _tree_size(folder: Path) -> str:
    return size(sum(file.stat().st_size for file in folder.iterdir()))


def _licences() -> str:
    engines = sorted({entry.voice.partition("/")[0] for entry in Recordings.load("train", FOLDER).entries})
    told = "\n".join(f"- {ENGINE_LICENCES[engine]}." for engine in engines)
    return f"The weights are under Nearfield's licence, Apache-2.0. Their training speech was made with\n\n{told}"
