"""Bits by part, and the parts a user names."""

from pathlib import Path

import pytest
from nearfield.calibrate.policy import PARTS, bits_of, modalities_for, parts_named
from nearfield.errors import InputError
from nearfield.export.checkpoint import Checkpoint
from nearfield.export.export import Configs


def test_a_small_thinker_s_talker_keeps_eight_bits(checkpoint_3b: Path) -> None:
    configs = Configs.from_hf(Checkpoint.open(checkpoint_3b).config)
    assert (bits_of("thinker", configs), bits_of("talker", configs)) == (4, 8)
    object.__setattr__(configs.thinker, "hidden_size", 3584)
    assert bits_of("talker", configs) == 4
    assert [bits_of(part, configs) for part in ("audio", "vision", "dit")] == [8, 8, 8]


def test_parts_are_named_in_a_list() -> None:
    assert parts_named("talker, thinker") == ("thinker", "talker")
    assert parts_named("thinker") == ("thinker",)
    assert parts_named("vision,audio") == ("audio", "vision")
    assert parts_named("dit,vision,talker,audio,thinker") == PARTS
    with pytest.raises(InputError, match=r"nothing called 'vocoder'.*expected some of audio, vision, thinker, talk"):
        parts_named("thinker,vocoder")
    with pytest.raises(InputError, match="name both, thinker,talker"):
        parts_named("talker")
    with pytest.raises(InputError, match="codes that the Talker speaks: name both, talker,dit"):
        parts_named("thinker,dit")


def test_data_must_hold_what_the_parts_are_calibrated_on() -> None:
    assert modalities_for(parts_named("thinker")) == {"text", "audio", "vision"}
    assert modalities_for(parts_named("audio")) == {"audio"}
