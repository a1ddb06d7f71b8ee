"""What nano is judged on: one :class:`Item` a question, and the conversation it stands for.

Inputs: nano/heldout, which heldout.py writes and the repository keeps → outputs: messages for the runtime or for the
reference. Pictures and clips are drawn again from their seeds, so this needs neither synthesizers nor torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from ..errors import NearfieldError
from ..runtime.audio import read_audio
from ..runtime.messages import SYSTEM_PROMPT, Audio, Image, Message, Part, Text, Video
from .conditions import Disturbance
from .pictures import clip, draw
from .world import Skill

HELDOUT = Path(__file__).parent / "heldout"
INDEX = "index.jsonl"

Task = Literal[
    "sentences", "voices", "typed", "transcript", "again", "picture", "video", "refusal", "speech", "ceiling"
]


class Turn(msgspec.Struct, frozen=True, omit_defaults=True):
    """An earlier exchange of a conversation: what was said, as a recording or typed, and the reply it got."""

    prompt: str
    reply: str
    recording: str | None = None


class Item(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing to answer. For "speech" the prompt is typed and the sound of the reply is judged."""

    task: Task
    skill: Skill
    prompt: str
    """What is said or typed."""
    reply: str
    """The exact answer."""
    recording: str | None = None
    """File of the spoken prompt (for "ceiling": of the spoken reply); None where it is typed."""
    voice: str | None = None
    system: str = SYSTEM_PROMPT
    history: tuple[Turn, ...] = ()
    seed: int | None = None
    """Of the picture or clip that is shown."""


def load(folder: Path = HELDOUT) -> list[Item]:
    """All items. Raises `NearfieldError` where there are none."""
    index = folder / INDEX
    if not index.exists():
        raise NearfieldError(f"{index} is not there; make it with `python -m nearfield.nano heldout`")
    return msgspec.json.Decoder(Item).decode_lines(index.read_bytes())


def messages(item: Item, folder: Path = HELDOUT, disturbed: Disturbance | None = None) -> list[Message]:
    """The conversation an item is about, up to its last prompt; every recording in it goes through `disturbed`."""
    conversation = [Message("system", [Text(item.system)])]
    for turn in item.history:
        conversation.append(Message("user", [_said(turn.prompt, turn.recording, folder, disturbed)]))
        conversation.append(Message("assistant", [Text(turn.reply)]))
    parts = [_said(item.prompt, item.recording, folder, disturbed)]
    if item.seed is not None:  # in the order of `nearfield ask`: sound, picture, text
        parts.insert(0 if item.recording is None else 1, _drawn(item.skill, item.seed))
    conversation.append(Message("user", parts))
    return conversation


def _said(prompt: str, recording: str | None, folder: Path, disturbed: Disturbance | None) -> Part:
    if recording is None:
        return Text(prompt)
    samples = read_audio(folder / recording)
    return Audio(samples if disturbed is None else disturbed(samples))


def _drawn(skill: Skill, seed: int) -> Image | Video:
    rng = np.random.default_rng(seed)
    if skill == "picture":
        return Image(draw(rng, "heldout").pixels)
    moving = clip(rng, "heldout")
    return Video(moving.frames, moving.fps)
