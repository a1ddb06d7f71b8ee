"""How well `runtime/heard.py` knows which words of a reply were heard when its speech was stopped.

    .venv/bin/python docs/measurements/heard.py | tee docs/measurements/heard.txt

Nano speaks replies; the recogniser that judges its voice says when each word ends. Speech is then stopped at every
tenth of a second: how many words does the estimate say were heard, and how many had ended? Once with the reply
complete, so that its length is known, and once while it is made, at the speed of the replies before it.
"""

import numpy as np
from nearfield import AudioChunk, Omni, Text, TurnEnd
from nearfield.apps.cli.common import DEMO_BUNDLE
from nearfield.nano.questions import load
from nearfield.nano.recogniser import Recogniser, word_errors, words
from nearfield.runtime.heard import spoken_units, tokens_heard
from tqdm import tqdm

STEP_S = 0.1
_FRAME_S, _MARGIN_S = 0.01, 0.2  # of the recogniser; silence put before what it hears


def main() -> None:
    """Measure both voices."""
    omni, recogniser = Omni.load(DEMO_BUNDLE), Recogniser()
    for voice in omni.voices:
        known, running, speeds = list[int](), list[int](), [15.0]
        replies = 0
        for item in tqdm([item for item in load() if item.task == "speech"], desc=voice, leave=False):
            conversation = omni.conversation(voice=voice, seed=0)
            conversation.attach(Text(item.prompt))
            events = list(conversation.respond())
            end = events[-1]
            assert isinstance(end, TurnEnd)
            reply = conversation._reply
            assert reply is not None
            samples = np.concatenate([event.samples for event in events if isinstance(event, AudioChunk)])
            heard = recogniser.hear(samples, 24_000)
            if word_errors(words(end.text), heard):
                continue  # where it took other words, it does not know their times
            replies += 1
            ends_s = [
                segment.end_frame * _FRAME_S - _MARGIN_S
                for segment in recogniser._decoder.seg()
                if words(segment.word) and not segment.word.startswith("<")
            ]
            seconds, speed = len(samples) / 24_000, float(np.mean(speeds[-3:]))
            for played_s in np.arange(0, seconds, STEP_S):
                ended = sum(moment <= played_s for moment in ends_s)
                for errors, rate in ((known, spoken_units(end.text) / seconds), (running, speed)):
                    count = tokens_heard(reply.texts, played_s, rate)
                    errors.append(len(words("".join(reply.texts[:count]))) - ended)
            speeds.append(spoken_units(end.text) / seconds)
        print(f"{voice}: {replies} replies, {np.mean(speeds[1:]):.1f} letters a second")
        for name, errors in (("reply complete", known), ("still being made", running)):
            off = np.abs(errors)
            print(
                f"  {name:17} words off, mean {off.mean():.2f} (signed {np.mean(errors):+.2f}), "
                f"at most one in {100 * np.mean(off <= 1):.0f} % of {len(off)} moments, "
                f"two in {100 * np.mean(off <= 2):.0f} %"
            )


if __name__ == "__main__":
    main()
