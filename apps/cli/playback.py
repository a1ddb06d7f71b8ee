"""A sound file → the speaker, waiting until it has been heard; or the reason why it could not be.

Sound is played by a process of its own: voice/apart.py says why.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import soundfile
import soxr

from ...errors import AudioDeviceError
from ..voice.apart import needs_portaudio, run_module

_GRACE_SECONDS = 10.0
"""Time to start the process and open the device, beyond the length of the sound."""


def play(path: Path, *, grace_seconds: float = _GRACE_SECONDS) -> str | None:
    """Play a sound file to its end; returns why it was not heard, None when it was. Interrupting ends it at once."""
    limit_seconds = soundfile.info(path).duration + grace_seconds
    try:
        ended = run_module(__name__, str(path), timeout_s=limit_seconds)
    except subprocess.TimeoutExpired:
        return "the sound device does not respond"
    if ended.returncode != 0:
        return ended.stdout.strip() or f"the player ended with exit code {ended.returncode}"
    return None


def _play_here(path: Path) -> str | None:
    """Play with PortAudio in this process; returns why that is not possible.

    The sound is brought to the device's own rate and, where it has two channels, to both: not every device converts.
    """
    try:
        with needs_portaudio():
            import sounddevice
    except AudioDeviceError as error:
        return str(error)
    try:
        device = sounddevice.query_devices(kind="output")
    except (sounddevice.PortAudioError, ValueError):
        return "no speaker was found"
    samples, rate_hz = soundfile.read(path, dtype="float32")
    device_rate_hz = device["default_samplerate"]
    resampled = soxr.resample(samples, rate_hz, device_rate_hz)
    channels = [1, 2][: device["max_output_channels"]]
    try:
        sounddevice.play(resampled, device_rate_hz, mapping=channels, blocking=True)
    except sounddevice.PortAudioError as error:
        return f"the speaker cannot be used ({error})"
    return None


def _main() -> int:
    reason = _play_here(Path(sys.argv[1]))
    if reason is not None:
        print(reason)
    return int(reason is not None)


if __name__ == "__main__":
    sys.exit(_main())
