"""Parts of a conversation refuse what cannot be used, where they are made."""

from typing import Any

import numpy as np
import pytest
from nearfield.errors import AudioError, ImageError, InputError
from nearfield.runtime.messages import Audio, Image, Message, Text, Video

FRAME = np.zeros((5, 5, 3), np.uint8)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Text(b"bytes"), InputError, "text must be a str, found bytes"),  # type: ignore[arg-type]
        (lambda: Text("a\ud800"), InputError, "half a character at position 1"),
        (lambda: Text("caf\udce9"), InputError, r"the terminal's encoding is not UTF-8: set PYTHONUTF8=1"),
        (lambda: Audio([0.0]), AudioError, r"audio must be float32 \(N,\) at 16 kHz, found list"),  # type: ignore[arg-type]
        (lambda: Audio(np.zeros(5)), AudioError, r"found float64 \(5,\); audio.from_array converts it"),  # type: ignore[arg-type]
        (lambda: Audio(np.zeros((5, 2), np.float32)), AudioError, r"found float32 \(5, 2\)"),
        (lambda: Audio(np.zeros(0, np.float32)), AudioError, "empty"),
        (lambda: Audio(np.array([np.nan], np.float32)), AudioError, "not finite"),
        (lambda: Image(np.zeros((5, 5), np.uint8)), ImageError, "the image must be"),
        (lambda: Video([], 1.0), ImageError, "no frames"),
        (lambda: Video([FRAME], 0.0), InputError, "fps must be above 0, found 0.0"),
        (lambda: Video([FRAME], float("nan")), InputError, "fps must be above 0, found nan"),
        (lambda: Message("tool", ()), InputError, "role must be one of system, user, assistant, found 'tool'"),  # type: ignore[arg-type]
        (lambda: Message("user", ("words",)), InputError, "holds Text, Audio, Image and Video, found str"),  # type: ignore[arg-type]
    ],
)
def test_parts_are_checked_where_they_are_made(make: Any, error: type[InputError], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_a_message_of_every_part_is_accepted() -> None:
    sound = Audio(np.zeros(1, np.float32))
    parts = (Text(""), sound, Image(FRAME), Video([FRAME], 2.0), Video(np.stack([FRAME] * 2), 2.0, sound))
    assert Message("assistant", parts).content == parts
