"""`Conversation.transcript`: the model asked what it heard, beside the same question asked of a fresh conversation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from nearfield.apps.cli.common import DEMO_BUNDLE
from nearfield.errors import InputError
from nearfield.runtime.audio import read_audio
from nearfield.runtime.conversation import TRANSCRIBE, Conversation
from nearfield.runtime.events import TextDelta, TurnEnd
from nearfield.runtime.messages import SYSTEM_PROMPT, Audio, Message, Text
from nearfield.runtime.omni import Omni
from nearfield.runtime.sampling import Sampling
from tolerances import CONVERSATION, relative_error

GREEDY_TALKER = Sampling(greedy=True, repetition_penalty=1.05)
FIRST, SECOND = (read_audio(DEMO_BUNDLE.parent / f"question-{number}.flac") for number in (1, 2))


@pytest.fixture(scope="module")
def omni() -> Omni:
    return Omni.load(DEMO_BUNDLE, threads=1)


@pytest.fixture(scope="module")
def other() -> Omni:
    return Omni.load(DEMO_BUNDLE, threads=1)


def begin(omni: Omni, *, speak: bool = True) -> Conversation:
    return omni.conversation(seed=3, speak=speak, max_codes=200, talker_sampling=GREEDY_TALKER)


def answered(conversation: Conversation, *parts: npt.NDArray[np.float32] | str) -> TurnEnd:
    for part in parts:
        conversation.attach(Text(part)) if isinstance(part, str) else conversation.listen(part)
    end = list(conversation.respond())[-1]
    assert isinstance(end, TurnEnd)
    return end


@pytest.mark.parametrize("speak", [True, False])
def test_it_is_what_a_fresh_conversation_says_when_it_is_asked_to_write_down_the_same_sound(
    omni: Omni, other: Omni, speak: bool
) -> None:
    conversation = begin(omni, speak=speak)
    earlier = answered(conversation, "Hello.")
    answered(conversation, FIRST)
    said = [
        Message("system", [Text(SYSTEM_PROMPT)]),
        Message("user", [Text("Hello.")]),
        Message("assistant", [Text(earlier.text)]),
        Message("user", [Audio(FIRST), Text(TRANSCRIBE)]),
    ]
    expected = [event for event in other.respond(said, speak=False, max_tokens=12) if isinstance(event, TextDelta)]
    assert conversation.transcript(max_tokens=12) == "".join(event.text for event in expected).strip()


def test_afterwards_the_conversation_goes_on_as_if_nobody_had_asked(omni: Omni, other: Omni) -> None:
    asked, unasked = begin(omni), begin(other)
    for conversation in (asked, unasked):
        answered(conversation, FIRST)
    asked.transcript(max_tokens=12)
    ends = [answered(conversation, SECOND) for conversation in (asked, unasked)]
    assert ends[0].text == ends[1].text
    assert ends[0].timing.codes == ends[1].timing.codes
    assert np.array_equal(asked.history.token_ids, unasked.history.token_ids)
    assert relative_error(omni.parts.thinker.logits, other.parts.thinker.logits) <= CONVERSATION


def test_it_can_be_asked_for_after_an_interruption(omni: Omni, other: Omni) -> None:
    asked, unasked = begin(omni), begin(other)
    for conversation in (asked, unasked):
        answered(conversation, FIRST)
        conversation.interrupt(36_000)  # 1.5 s
    assert asked.transcript(max_tokens=12)
    assert answered(asked, SECOND).text == answered(unasked, SECOND).text


def test_a_question_without_sound_has_none(omni: Omni) -> None:
    conversation = begin(omni)
    answered(conversation, "Hello.")
    assert conversation.transcript() == ""


def test_there_is_none_before_an_answer(omni: Omni) -> None:
    conversation = begin(omni)
    with pytest.raises(InputError, match="there is none yet"):
        conversation.transcript()
    conversation.listen(FIRST)
    with pytest.raises(InputError, match="there is none yet"):
        conversation.transcript()
    with pytest.raises(InputError, match="max_tokens is 0"):
        conversation.transcript(max_tokens=0)
