"""Nano answering aloud, here and in transformers, the same checkpoint, the same questions, in turns.

    .venv/bin/python docs/measurements/against_transformers.py | tee docs/measurements/against_transformers.txt

Time to first sound, and of the whole turn, from the end of the question. `transformers` (float32, eager, as published)
gives all of its sound at the end. Its replies are as long as its own Talker makes them, so the time of a turn is also
given for a second of speech. Here the question is heard as it comes; a second line gives it at once, like transformers.
"""

import time
from pathlib import Path
from statistics import median

import torch
from nearfield import AudioChunk, Omni, TurnEnd
from nearfield.apps.cli.common import DEMO_BUNDLE
from nearfield.nano import reference
from nearfield.nano.questions import HELDOUT, Item, load, messages
from nearfield.runtime.audio import read_audio

REPEATS = 10
THREADS = 2


def streamed(omni: Omni, item: Item) -> tuple[float, float, float]:
    """First sound, end of the turn, seconds of speech: heard while it is spoken."""
    assert item.recording is not None
    samples = read_audio(HELDOUT / item.recording)
    conversation = omni.conversation(seed=0)
    conversation.listen(samples[:-1600])
    started = time.perf_counter()
    conversation.listen(samples[-1600:])
    return _timed(conversation.respond(), started)


def at_once(omni: Omni, item: Item) -> tuple[float, float, float]:
    """The same, heard only when it is over."""
    asked, started = messages(item), time.perf_counter()
    return _timed(omni.respond(asked, seed=0), started)


def in_transformers(model: object, processor: object, item: Item) -> tuple[float, float, float]:
    """The same by `generate`, with the front end it comes with."""
    asked, started = messages(item), time.perf_counter()
    batch = processor(
        text=reference.prompt_text(processor, asked),
        audio=[part.samples for part in asked[-1].content],
        return_tensors="pt",
    )
    with torch.no_grad():
        _, waveform = model.generate(
            **batch,
            speaker="Chelsie",
            thinker_max_new_tokens=64,
            talker_max_new_tokens=500,
            talker_eos_token_id=[model.config.talker_config.tts_codec_end_token_id, model.talker.codec_pad_token],
        )
    elapsed = time.perf_counter() - started
    return elapsed, elapsed, waveform.numel() / 24_000


def _timed(events: object, started: float) -> tuple[float, float, float]:
    first = None
    for event in events:
        if isinstance(event, AudioChunk) and first is None:
            first = time.perf_counter() - started
        if isinstance(event, TurnEnd):
            spoken = event.timing.audio_seconds
    return first or 0.0, time.perf_counter() - started, spoken


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(THREADS)
    omni = Omni.load(DEMO_BUNDLE, threads=THREADS)
    checkpoint = Path(reference.__file__).parent / "checkpoint"
    model, processor = reference.load_model(checkpoint), reference.load_processor(checkpoint)
    items = [item for item in load() if item.task == "sentences"][:REPEATS]
    ways = {
        "here, heard as it comes": lambda item: streamed(omni, item),
        "here, heard at once": lambda item: at_once(omni, item),
        "transformers": lambda item: in_transformers(model, processor, item),
    }
    times: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ways}
    for name, way in ways.items():
        way(items[0])  # once that does not count
        del name
    for item in items:
        for name, way in ways.items():
            times[name].append(way(item))
    print(f"{'':24} {'first sound':>12} {'whole turn':>11} {'of speech':>10} {'turn / second of speech':>24}")
    for name, measured in times.items():
        first, whole, spoken = (median(values) for values in zip(*measured, strict=True))
        per_second = median(turn / seconds for _, turn, seconds in measured if seconds)
        print(f"{name:24} {first:10.3f} s {whole:9.3f} s {spoken:8.2f} s {per_second:22.3f} s")
    (ours, _, theirs) = (list(zip(*measured, strict=True)) for measured in times.values())
    ratios = [median(b / a for a, b in zip(ours[index], theirs[index], strict=True)) for index in (0, 1)]
    print(f"transformers takes {ratios[0]:.1f} times as long to its first sound, {ratios[1]:.1f} times for the turn")


if __name__ == "__main__":
    main()
