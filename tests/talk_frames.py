"""For tests of turn taking: a conversation fed frame by frame, each frame showing its number."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from nearfield.apps.voice.frames import FRAME_MS, FRAME_SAMPLES, whole_frames
from nearfield.apps.voice.patience import Patience
from nearfield.apps.voice.turn_taking import (
    Action,
    Changed,
    Hear,
    State,
    TurnTaking,
)

PATIENCE = Patience.of("medium")


@dataclass
class Talk:
    """A conversation fed frame by frame; frame number n holds the value n, so that it shows what was given."""

    turns: TurnTaking = field(default_factory=lambda: TurnTaking(PATIENCE))
    frames: int = 0
    actions: list[Action] = field(default_factory=list)
    """All so far."""

    def frame(self, probability: float) -> list[Action]:
        self.frames += 1
        return self.did(self.turns.heard(np.full(FRAME_SAMPLES, self.frames, np.float32), probability))

    def did(self, actions: list[Action]) -> list[Action]:
        self.actions += actions
        return actions

    def voice(self, time_ms: int, probability: float = 0.9) -> list[Action]:
        """All that is done while somebody speaks so long."""
        return [action for _ in range(whole_frames(time_ms)) for action in self.frame(probability)]

    def silence(self, time_ms: int) -> list[Action]:
        return self.voice(time_ms, 0.05)

    def until(self, kind: type[Action], probability: float, limit_ms: int = 3000) -> int:
        """How long it takes until something is done, in milliseconds."""
        for count in range(1, whole_frames(limit_ms) + 1):
            if any(isinstance(action, kind) for action in self.frame(probability)):
                return count * FRAME_MS
        raise AssertionError(f"no {kind.__name__} within {limit_ms} ms")

    def speaking(self) -> None:
        """Bring about a reply that plays."""
        self.voice(600)
        self.silence(1500)
        self.did(self.turns.reply_sounds())
        self.silence(1500)
        assert self.turns.state is State.SPEAKING


def given_frames(actions: Iterable[Action]) -> list[int]:
    """The numbers of the frames the model was given; 0 for one that was silenced."""
    sounds = [action.samples for action in actions if isinstance(action, Hear)]
    assert all(len(samples) % FRAME_SAMPLES == 0 for samples in sounds)
    return [int(number) for samples in sounds for number in samples[::FRAME_SAMPLES]]


def kinds(actions: Iterable[Action]) -> list[str]:
    """Names of actions, `Hear` left out, states in place of `Changed`."""
    return [
        action.state.value if isinstance(action, Changed) else type(action).__name__
        for action in actions
        if not isinstance(action, Hear)
    ]
