"""Messages come out of the pipe as they went in, however the bytes arrive; anything else is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nearfield.apps.voice.wire import (
    DeviceChoice,
    DeviceState,
    Drop,
    Failed,
    Finish,
    Heard,
    Hold,
    Message,
    Play,
    Played,
    Progress,
    Resume,
    WireError,
    encode,
    read_message,
)

SOUND = st.lists(st.floats(-1, 1, width=32), max_size=40).map(lambda values: np.array(values, np.float32))
TEXT = st.none() | st.text(max_size=20)
NUMBER = st.integers(0, 2**40)
SECONDS = st.floats(0, 1e9)
MESSAGES = st.one_of(
    st.builds(DeviceChoice, TEXT, TEXT, st.booleans()),
    st.builds(Play, NUMBER, SOUND),
    st.builds(Finish, NUMBER),
    st.builds(Hold),
    st.builds(Resume),
    st.builds(Drop),
    st.builds(Heard, SOUND, st.floats(0, 1), SECONDS),
    st.builds(DeviceState, st.booleans(), TEXT, TEXT, TEXT),
    st.builds(Progress, NUMBER, st.builds(Played, NUMBER, st.booleans(), st.none() | SECONDS, NUMBER)),
    st.builds(Failed, st.text(max_size=20)),
)


class Dribble(io.BytesIO):
    """Gives a few bytes at a time, as a pipe may."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(3, size or 3))


def same(left: Message, right: Message) -> bool:
    """Whether two messages are equal, sound sample by sample."""
    parts = [(vars(left)[name], vars(right)[name]) for name in vars(left)]
    return type(left) is type(right) and all(
        np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b for a, b in parts
    )


@given(st.lists(MESSAGES, max_size=6))
def test_messages_arrive_as_they_were_sent(messages: list[Message]) -> None:
    source = Dribble(b"".join(map(encode, messages)))
    for message in messages:
        arrived = read_message(source)
        assert arrived is not None
        assert same(message, arrived)
    assert read_message(source) is None


@given(MESSAGES, st.data())
def test_a_message_cut_short_is_the_end(message: Message, data: st.DataObject) -> None:
    whole = encode(message)
    assert read_message(io.BytesIO(whole[: data.draw(st.integers(0, len(whole) - 1))])) is None


@pytest.mark.parametrize(
    "noise",
    [
        b"ALSA lib pcm.c: no such device\n",
        b"NF\xff\x00\x00\x00\x00\x00",
        b"NF\x00\x00\xff\xff\xff\xff",
        b"NF\x00\x00\x02\x00\x00\x00{}x"[:9] + b"]",
        b"NF\x02\x00\x01\x00\x00\x00x",
        b"NF\x00\x00\x09\x00\x00\x00" + b'{"no": 1}',
        encode(Play(1, np.zeros(3, np.float32)))[:4] + b"\x09\x00\x00\x00" + bytes(9),
    ],
    ids=["text", "kind", "length", "json", "body", "field", "half a sample"],
)
def test_bytes_that_are_no_message_are_refused(noise: bytes) -> None:
    with pytest.raises(WireError):
        read_message(io.BytesIO(noise))
