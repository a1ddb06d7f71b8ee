"""How many bits each part of the model gets, and why: the one place where this is decided.

| part | bits | why |
|---|---|---|
| Thinker, Linears of its layers | 4 | three quarters of all weights; a token reads every one of them |
| Thinker, `lm_head`, `embed_tokens` | 16 | their errors reach the words undamped; the table is gathered on the host |
| Talker, beside a Thinker of 7B | 4 | wide enough |
| Talker, beside a smaller one | 8 | public reports have its speech suffer at 4 (../shared/parts.md) and it is small |
| Talker, projection and `codec_head` | 16 | as `lm_head` |
| audio and vision encoder, DiT, vocoder | 16 | run once a prompt, not once a token |
"""

from __future__ import annotations

from typing import Literal, get_args

from ..errors import InputError
from ..export.export import Configs

Part = Literal["thinker", "talker"]
PARTS: tuple[Part, ...] = get_args(Part)
"""What can be quantized."""

_WIDE_THINKER = 3584
"""Hidden size of 7B's Thinker."""


def bits_of(part: Part, configs: Configs) -> Literal[4, 8]:
    """Bits of the Linears of a part's layers."""
    if part == "talker" and configs.thinker.hidden_size < _WIDE_THINKER:
        return 8
    return 4


def parts_named(names: str) -> tuple[Part, ...]:
    """The parts in a list like `thinker,talker`; raises `InputError` for others, and for the Talker alone.

    The Talker is calibrated on what the quantized Thinker makes, so it is never quantized without it.
    """
    known: dict[str, Part] = {part: part for part in PARTS}
    asked = [name.strip() for name in names.split(",")]
    if unknown := [name for name in asked if name not in known]:
        raise InputError(f"there is nothing called {unknown[0]!r} to be quantized; expected {' or '.join(PARTS)}")
    if "thinker" not in asked:
        raise InputError("the Talker is calibrated on what the quantized Thinker makes: name both, thinker,talker")
    return tuple(part for part in PARTS if part in asked)
