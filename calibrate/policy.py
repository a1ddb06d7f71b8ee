"""How many bits each part of the model gets, and why: the one place where this is decided.

| part | bits | why |
|---|---|---|
| `thinker`: Linears of its layers | 4 | three quarters of all weights; a token reads every one of them |
| Thinker's `lm_head`, `embed_tokens` | 16 | their errors reach the words undamped; the table is gathered on the host |
| `talker`: its layers, beside a Thinker of 7B | 4 | wide enough |
| `talker`: its layers, beside a smaller one | 8 | public reports have its speech suffer at 4; it is small |
| Talker's projection and `codec_head` | 16 | as `lm_head` |
| `audio`, `vision`: Linears of their layers | 16; 8 if named | run once a prompt: fewer bits save memory, but no time |
| encoders' convolutions, `proj`, `merger` | 16 | the first see raw input; the last are all that the Thinker sees |
| `dit`: Linears of its blocks | 32; 8 if named | 36 evaluations add their errors up, and it is small |
| DiT's embeddings, `proj_out` | 32 | the state itself passes through them at every evaluation |
| DiT's modulation, speaker encoder | none | they run at export: a table, and a vector a voice, are what is kept |
| vocoder | 32 | it has no Linears |

By default Thinker and Talker are quantized; encoders and DiT are when they are named. `--bits` overrides the bits.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, get_args

from ..errors import InputError
from ..export.export import Configs

Part = Literal["audio", "vision", "thinker", "talker", "dit"]
PARTS: tuple[Part, ...] = get_args(Part)
"""What can be quantized, in the order in which it works, and is calibrated on what those before it put out."""
DEFAULT_PARTS: tuple[Part, ...] = ("thinker", "talker")

_WIDE_THINKER = 3584
"""Hidden size of 7B's Thinker."""
_NEEDS: dict[Part, tuple[Part, str]] = {
    "talker": ("thinker", "the Talker is calibrated on what the quantized Thinker makes"),
    "dit": ("talker", "the DiT is calibrated on the codes that the Talker speaks"),
}


def bits_of(part: Part, configs: Configs) -> Literal[4, 8]:
    """Bits of the Linears of a part's layers."""
    if part in ("audio", "vision", "dit"):
        return 8
    if part == "talker" and configs.thinker.hidden_size < _WIDE_THINKER:
        return 8
    return 4


def parts_named(names: str) -> tuple[Part, ...]:
    """The parts in a list like `thinker,talker`; raises `InputError` for others, and for one without what it needs."""
    known: dict[str, Part] = {part: part for part in PARTS}
    asked = [name.strip() for name in names.split(",")]
    if unknown := [name for name in asked if name not in known]:
        raise InputError(f"there is nothing called {unknown[0]!r} to be quantized; expected some of {', '.join(PARTS)}")
    for part, (needed, why) in _NEEDS.items():
        if part in asked and needed not in asked:
            raise InputError(f"{why}: name both, {needed},{part}")
    return tuple(part for part in PARTS if part in asked)


def modalities_for(parts: Collection[Part]) -> frozenset[str]:
    """What calibration data must hold: all of it for the Thinker, for an encoder alone what that one takes."""
    if "thinker" in parts:
        return frozenset({"text", "audio", "vision"})
    return frozenset(parts) & {"audio", "vision"}
