"""What it costs nano to hear as people speak: the mel rule of a stream against that of the whole clip.

    .venv/bin/python docs/measurements/listening.py | tee docs/measurements/listening.txt

A stream does not know how loud a clip will become (runtime/mel_stream.py), so its features differ where something later
is louder. Both rules hear the same held-out recordings through the shipped bundle; transcripts are scored by words.
"""

import sys
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from nearfield import Audio, Omni, Text, TurnEnd
from nearfield.apps.cli.common import DEMO_BUNDLE
from nearfield.nano.conditions import CONDITIONS
from nearfield.nano.questions import Item, load, messages
from nearfield.nano.recogniser import word_errors, words
from nearfield.runtime.mel import log_mel
from nearfield.runtime.mel_stream import MelStream
from tqdm import tqdm

MAX_TOKENS = 64
PIECE = 1600
TASKS = ("sentences", "voices", "transcript")
HEARD = {"as recorded": None, "+12 dB": CONDITIONS["+12 dB"], "noise 15 dB below": CONDITIONS["noise 15 dB below"]}


Change = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]] | None


def whole(omni: Omni, item: Item, change: Change) -> str:
    """What is answered to the whole clip."""
    (end,) = (
        event
        for event in omni.respond(messages(item, disturbed=change), speak=False, max_tokens=MAX_TOKENS)
        if isinstance(event, TurnEnd)
    )
    return end.text


def streamed(omni: Omni, item: Item, change: Change) -> str:
    """What is answered to the clip as it comes."""
    system, question = messages(item, disturbed=change)
    (instructions,), (sound,) = system.content, question.content
    assert isinstance(instructions, Text)
    assert isinstance(sound, Audio)
    conversation = omni.conversation(system=instructions.text, speak=False, max_tokens=MAX_TOKENS)
    for start in range(0, len(sound.samples), PIECE):
        conversation.listen(sound.samples[start : start + PIECE])
    (end,) = (event for event in conversation.respond() if isinstance(event, TurnEnd))
    return end.text


def main() -> None:
    """Measure every task under every condition."""
    omni = Omni.load(DEMO_BUNDLE)
    audio = omni.bundle.manifest.audio
    items = load()
    print(f"{'task':12} {'heard':18} {'of':>5} {'whole clip':>11} {'stream':>7} {'points':>7} {'same answer':>12}")
    for task in TASKS:
        for name, change in HEARD.items():
            right, total, same, count = [0, 0], 0, 0, 0
            for item in tqdm([item for item in items if item.task == task], desc=f"{task}, {name}", leave=False):
                answers = whole(omni, item, change).strip(), streamed(omni, item, change).strip()
                same, count = same + (answers[0] == answers[1]), count + 1
                expected = words(item.reply) if task == "transcript" else [item.reply]
                total += len(expected)
                for index, answer in enumerate(answers):
                    found = words(answer) if task == "transcript" else [answer]
                    right[index] += len(expected) - word_errors(expected, found)
            points = 100 * (right[1] - right[0]) / total
            shares = [f"{100 * value / total:.1f} %" for value in right]
            agreeing = f"{100 * same / count:.1f} %"
            print(f"{task:12} {name:18} {total:5} {shares[0]:>11} {shares[1]:>7} {points:+7.1f} {agreeing:>12}")
            sys.stdout.flush()
    differences = []
    for item in items:
        if item.task in TASKS[:2]:
            sound = messages(item)[-1].content[0]
            assert isinstance(sound, Audio)
            stream = MelStream(audio)
            mel = np.concatenate([*stream.push(sound.samples), *stream.rest()], axis=1)
            differences.append(np.abs(mel - log_mel(sound.samples, audio)).mean())
    print(
        f"mean difference of a mel value, where the scale spans 2: {np.mean(differences):.2e}; "
        f"recordings with any: {100 * np.mean(np.array(differences) > 1e-6):.0f} %"
    )


if __name__ == "__main__":
    main()
