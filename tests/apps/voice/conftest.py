"""The rig of virtual audio devices, a new one for each test that asks for it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import audio_rig
import pytest


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[audio_rig.AudioRig]:
    """A running rig, which every process of the test finds.

    Skipped where there is none; with NEARFIELD_AUDIO_RIG=required, as in CI, that is a failure.
    """
    reason = audio_rig.missing()
    if reason is not None:
        if os.environ.get("NEARFIELD_AUDIO_RIG") == "required":
            pytest.fail(f"NEARFIELD_AUDIO_RIG=required, but {reason}")
        pytest.skip(f"no virtual audio devices: {reason}")
    with audio_rig.AudioRig() as running:
        for name in ("PULSE_SERVER", "XDG_RUNTIME_DIR"):
            monkeypatch.setenv(name, running.environment[name])
        yield running
