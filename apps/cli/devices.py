"""Which microphones and speakers there are, and which of them a choice means, known before a model is loaded.

It is asked in a process of its own: voice/apart.py says why.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass

from ...errors import AudioDeviceError
from ..voice.apart import needs_portaudio, run_module
from ..voice.wire import DeviceChoice

_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Devices:
    """What there is, by name, and what would be used."""

    microphones: list[str]
    speakers: list[str]
    microphone: str | None = None
    """The one that is meant; None when that is not possible."""
    speaker: str | None = None
    trouble: str | None = None
    """Why one of them cannot be used."""


def find_devices(choice: DeviceChoice, *, timeout_s: float = _TIMEOUT_S) -> Devices:
    """Look for the devices. Raises `AudioDeviceError` when nobody can say which there are."""
    wanted = json.dumps([choice.microphone, choice.speaker])
    try:
        ended = run_module(__name__, wanted, timeout_s=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise AudioDeviceError("the sound system does not respond; restart it, or the computer") from error
    if ended.returncode != 0:
        raise AudioDeviceError(ended.stdout.strip() or f"the search for devices ended with code {ended.returncode}")
    return Devices(**json.loads(ended.stdout.splitlines()[-1]))


def listing(devices: Devices) -> str:
    """The devices as text, those that would be used marked."""
    lines = []
    for kind, names, used in (
        ("microphones", devices.microphones, devices.microphone),
        ("speakers", devices.speakers, devices.speaker),
    ):
        lines.append(f"{kind}:")
        lines += [f"  {name}{'  (used)' if name == used else ''}" for name in names] or ["  none was found"]
    return "\n".join(lines)


def _find_here(choice: DeviceChoice) -> Devices:
    """Look in this process. Raises `AudioDeviceError` where a package or a library is missing."""
    with needs_portaudio():
        from ..voice import device_names, pulse
    server = pulse.look()
    wanted: dict[device_names.Kind, str | None] = {"microphone": choice.microphone, "speaker": choice.speaker}
    used, troubles = dict[str, str](), list[str]()
    for kind, name in wanted.items():
        try:
            used[kind] = device_names.both_names(device_names.find(kind, name, server))
        except AudioDeviceError as error:
            troubles.append(str(error))
    return Devices(
        device_names.names("microphone", server),
        device_names.names("speaker", server),
        used.get("microphone"),
        used.get("speaker"),
        "; ".join(troubles) or None,
    )


def _main() -> int:
    try:
        found = _find_here(DeviceChoice(*json.loads(sys.argv[1])))
    except AudioDeviceError as error:
        print(error)
        return 1
    print(json.dumps(asdict(found)))
    return 0


if __name__ == "__main__":
    sys.exit(_main())
