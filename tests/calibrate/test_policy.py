"""Bits by part, and the parts a user names."""

from pathlib import Path

import pytest
from nearfield.calibrate.policy import bits_of, parts_named
from nearfield.errors import InputError
from nearfield.export.checkpoint import Checkpoint
from nearfield.export.export import Configs


def test_a_small_thinker_s_talker_keeps_eight_bits(checkpoint_3b: Path) -> None:
    configs = Configs.from_hf(Checkpoint.open(checkpoint_3b).config)
    assert (bits_of("thinker", configs), bits_of("talker", configs)) == (4, 8)
    object.__setattr__(configs.thinker, "hidden_size", 3584)
    assert bits_of("talker", configs) == 4


def test_parts_are_named_in_a_list() -> None:
    assert parts_named("talker, thinker") == ("thinker", "talker")
    assert parts_named("thinker") == ("thinker",)
    with pytest.raises(InputError, match="nothing called 'vision'"):
        parts_named("thinker,vision")
    with pytest.raises(InputError, match="name both"):
        parts_named("talker")
