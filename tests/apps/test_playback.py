"""Playing sound: what reaches the device, what is said when nothing can, and that a device that hangs holds nobody up.

The player is a process of its own, so stand-ins for the package sounddevice are files on its path.
"""

from __future__ import annotations

import ctypes.util
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
from nearfield.apps.cli.common import DEMO_QUESTIONS, install_command
from nearfield.apps.cli.playback import play

DEVICE = """
from pathlib import Path
class PortAudioError(Exception):
    pass
def query_devices(kind):
    assert kind == "output"
    return {"default_samplerate": 48000.0, "max_output_channels": CHANNELS}
def play(data, samplerate, mapping, blocking):
    import numpy
    file = Path(__file__).with_name("heard.npz")
    numpy.savez(file, data=data, rate_hz=samplerate, mapping=mapping, blocking=blocking)
"""
HANGS = """
import os, time
from pathlib import Path
Path(__file__).with_name("pid").write_text(str(os.getpid()))
time.sleep(60)
"""


@pytest.fixture
def tone(tmp_path: Path) -> Path:
    """A tenth of a second at 24 kHz, the rate of replies."""
    path = tmp_path / "tone.wav"
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * 440 * np.arange(2400) / 24_000), 24_000)
    return path


def stand_in(folder: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `source` the player's sounddevice."""
    (folder / "sounddevice.py").write_text(source, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(folder))


@pytest.mark.parametrize(("channels", "mapping"), [(1, [1]), (2, [1, 2]), (8, [1, 2])])
def test_the_device_gets_the_whole_sound_at_its_own_rate_and_on_both_sides(
    channels: int, mapping: list[int], tone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, DEVICE.replace("CHANNELS", str(channels)), monkeypatch)
    assert play(tone) is None
    heard = np.load(tmp_path / "heard.npz")
    assert (heard["rate_hz"], heard["mapping"].tolist(), heard["blocking"]) == (48_000, mapping, True)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(4800) / 48_000)
    assert heard["data"].shape == expected.shape
    np.testing.assert_allclose(heard["data"][200:-200], expected[200:-200], atol=1e-3)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise ModuleNotFoundError('no module')", f"no sounddevice; {install_command('voice')}"),
        (
            "raise OSError('PortAudio library not found')",
            "no PortAudio; on Debian and Ubuntu: apt install libportaudio2",
        ),
        (
            DEVICE.replace("    assert kind", "    raise PortAudioError('device -1')\n    assert kind"),
            "no speaker was found",
        ),
        (DEVICE.replace("    import numpy", "    raise PortAudioError('busy')"), "the speaker cannot be used (busy)"),
        ("raise RuntimeError('unforeseen')", "the player ended with exit code 1"),
    ],
    ids=["package", "library", "device", "busy", "unforeseen"],
)
def test_what_cannot_be_heard_is_told_in_one_line(
    source: str, reason: str, tone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, source.replace("CHANNELS", "2"), monkeypatch)
    assert play(tone) == reason


def test_a_device_that_hangs_is_given_up(tone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, HANGS, monkeypatch)
    started = time.monotonic()
    assert play(tone, grace_seconds=5.0) == "the sound device does not respond"
    assert time.monotonic() - started < 20
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C cannot be sent to one process alone there")
def test_interrupting_ends_the_player_too(tone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, HANGS, monkeypatch)
    code = "import sys; from pathlib import Path; from nearfield.apps.cli.playback import play; play(Path(sys.argv[1]))"
    listener = subprocess.Popen([sys.executable, "-c", code, str(tone)], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()):
        assert time.monotonic() < deadline
        assert listener.poll() is None
        time.sleep(0.05)
    listener.send_signal(signal.SIGINT)
    _, errors = listener.communicate(timeout=5)
    assert "KeyboardInterrupt" in errors
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_no_module_of_the_current_directory_is_run(tone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, DEVICE.replace("CHANNELS", "2"), monkeypatch)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "soundfile.py").write_text("raise SystemExit('run')", encoding="utf-8")
    monkeypatch.chdir(elsewhere)
    assert play(tone) is None


@pytest.mark.skipif(
    sys.platform != "linux" or ctypes.util.find_library("portaudio") is not None,
    reason="PortAudio is installed here: it would be heard",
)
def test_the_real_sounddevice_without_portaudio_is_told() -> None:
    assert play(DEMO_QUESTIONS[0].recording) == "no PortAudio; on Debian and Ubuntu: apt install libportaudio2"
