"""PortAudio is only ever used in a process of its own: how one is started, and what it says when PortAudio is missing.

PortAudio can hang when a device sleeps or goes, it keeps the list of devices it read first, and the libraries under it
write to standard error. A process can be ended, and its errors go nowhere.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

from ...errors import AudioDeviceError


def module_command(name: str) -> tuple[str, ...]:
    """The command that runs a module of this package; -P: nothing in the current directory can pass for a module."""
    return (sys.executable, "-P", "-X", "utf8", "-m", name)


def run_module(name: str, argument: str, *, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run a module to its end, what it prints kept and its errors dropped. Raises `subprocess.TimeoutExpired`."""
    return subprocess.run(
        [*module_command(name), argument],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
        timeout=timeout_s,
        check=False,
    )


@contextlib.contextmanager
def needs_portaudio() -> Iterator[None]:
    """Around an import of sounddevice. Raises `AudioDeviceError` saying what to install where it fails."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise AudioDeviceError('no sounddevice; in a clone of the repository: pip install ".[voice]"') from error
    except OSError as error:  # the package's wheels hold PortAudio for Windows and macOS only
        raise AudioDeviceError("no PortAudio; on Debian and Ubuntu: apt install libportaudio2") from error
