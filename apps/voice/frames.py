"""The pieces in which sound from the microphone is looked at: 512 samples at 16 kHz, 32 ms."""

from __future__ import annotations

RATE_HZ = 16_000
FRAME_SAMPLES = 512
FRAME_MS = 1000 * FRAME_SAMPLES // RATE_HZ


def whole_frames(time_ms: int) -> int:
    """How many frames it takes to cover so much time."""
    return -(-time_ms // FRAME_MS)
