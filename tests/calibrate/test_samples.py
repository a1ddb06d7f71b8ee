"""Calibration data: what the documented folder holds is read, and what is wrong in it is named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from nearfield.calibrate.samples import FEWEST, INDEX, read_samples
from nearfield.errors import InputError
from nearfield.runtime.messages import Audio, Image, Text, Video
from PIL import Image as Picture

REPLY = {"role": "assistant", "content": "A red circle."}
SPOKEN = [{"type": "audio", "audio": "a.wav"}, {"type": "image", "image": "b.png"}]
FILMED = [{"type": "video", "video": ["b.png", "b.png"], "fps": 4}, {"type": "text", "text": "What moves?"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "a.wav", np.zeros(800, np.float32) + 0.1, 16_000)
    Picture.fromarray(np.full((56, 56, 3), 200, np.uint8)).save(tmp_path / "b.png")
    return tmp_path


def write(folder: Path, *conversations: Any) -> Path:
    lines = [it if isinstance(it, str) else json.dumps({"messages": it}) for it in conversations]
    (folder / INDEX).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def asked(content: Any, **more: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content, **more}, REPLY]


def test_a_folder_is_read(folder: Path) -> None:
    samples = read_samples(write(folder, asked(SPOKEN), "", asked(FILMED), *[asked("Hello.")] * FEWEST))
    assert len(samples) == FEWEST + 2, "an empty line is no sample"
    spoken, filmed, typed = (samples[index].messages[0].content for index in range(3))
    assert [type(part) for part in spoken] == [Audio, Image]
    assert isinstance(spoken[0], Audio)
    assert len(spoken[0].samples) == 800
    assert isinstance(filmed[0], Video)
    assert (len(filmed[0].frames), filmed[0].fps) == (2, 4)
    assert typed == [Text("Hello.")]
    assert {sample.reply for sample in samples} == {"A red circle."}


@pytest.mark.parametrize(
    ("conversation", "said"),
    [
        ("{", "line 1 is no conversation"),
        (asked([{"type": "smell", "smell": "x"}]), "line 1 is no conversation.*smell"),
        (asked([{"type": "audio", "audio": "missing.wav"}]), r"line 1: .*missing\.wav"),
        (asked("Hello.", name="x"), "line 1 is no conversation.*name"),
        ([{"role": "user", "content": "Hello."}], "line 1: the last message must be the assistant's"),
        ([{"role": "user", "content": "Hello."}, {"role": "assistant", "content": " "}], "reply is empty"),
        ([REPLY], "there is no message of the user"),
    ],
)
def test_a_line_that_is_no_sample_is_named(folder: Path, conversation: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_samples(write(folder, conversation))


def test_too_little_data_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=f"holds {FEWEST - 1} conversations; expected at least {FEWEST}"):
        read_samples(write(folder, *[asked(SPOKEN)] * (FEWEST - 1)))
    with pytest.raises(InputError, match=f"has no {INDEX}"):
        read_samples(folder / "elsewhere")


def test_a_missing_modality_is_refused_unless_it_is_not_needed(folder: Path) -> None:
    write(folder, *[asked("Hello.")] * FEWEST)
    with pytest.raises(InputError, match="no conversation with audio or vision"):
        read_samples(folder)
    assert len(read_samples(folder, needed=frozenset({"text"}))) == FEWEST
