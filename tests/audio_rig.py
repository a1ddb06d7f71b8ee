"""Virtual microphone and speaker: a private PulseAudio server with devices made of nothing, and faults on request.

    a file ─ say ─▶ ci_mic_feed ─▶ ci_mic (default microphone)        ci_speaker (default speaker) ─▶ Recorder
                         ▲────────────────── echo (−6 dB) ──────────────────┘

Needs Debian's pulseaudio, pulseaudio-utils, libasound2-plugins and libportaudio2, and no sound card. Nothing outside
the rig hears of it: programs find the server through `environment`.
"""

from __future__ import annotations

import ctypes.util
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import soundfile

Float32 = npt.NDArray[np.float32]

RATE_HZ = 48_000
_SECONDS_TO_START = 5.0
_SCRIPT = """.fail
load-module module-native-protocol-unix socket={folder}/pulse.sock auth-anonymous=1
"""
_MODULES = {
    # norewinds: without it seconds of a recording can go missing, and nothing says so
    "ci_speaker": "module-null-sink sink_name=ci_speaker rate={rate_hz} channels=2 norewinds=1",
    "ci_mic_feed": "module-null-sink sink_name=ci_mic_feed rate={rate_hz} channels=1 norewinds=1",
    "ci_mic": "module-remap-source master=ci_mic_feed.monitor source_name=ci_mic channels=1",
}


def missing() -> str | None:
    """What the machine lacks for a rig, as a line to read; None when it has all."""
    for program in ("pulseaudio", "pactl", "parec", "paplay"):
        if shutil.which(program) is None:
            return f"no {program}: apt install pulseaudio pulseaudio-utils libasound2-plugins libportaudio2"
    if ctypes.util.find_library("portaudio") is None:
        return "no PortAudio: apt install libportaudio2"
    if not any(Path("/usr/lib").glob("*/alsa-lib/libasound_module_pcm_pulse.so")):
        return "ALSA cannot reach PulseAudio: apt install libasound2-plugins"
    return None


class Recorder:
    """What a source gives, from now on, with the time of each sample."""

    def __init__(self, source: str, environment: dict[str, str]) -> None:
        options = ["--raw", "--format=float32le", f"--rate={RATE_HZ}", "--channels=1", "--latency-msec=10"]
        self._process = subprocess.Popen(
            ["parec", f"--device={source}", *options],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._lock = threading.Lock()
        self._chunks: list[Float32] = []
        self._samples = self._forgotten = 0
        self._first_sample_s = float("inf")
        self._thread = threading.Thread(target=self._run, name=f"recorder {source}", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        """Of the process that records."""
        return self._process.pid

    @property
    def count(self) -> int:
        """How many samples there are so far."""
        return self._samples

    def samples(self, start: int = 0) -> Float32:
        """All that was recorded since sample `start`, float32 `(n,)` at 48 kHz, and was not forgotten."""
        with self._lock:
            return np.concatenate([np.zeros(0, np.float32), *self._chunks])[max(0, start - self._forgotten) :]

    def forget(self) -> None:
        """Keep nothing of what was recorded so far: hours of it would fill the memory."""
        with self._lock:
            self._chunks.clear()
            self._forgotten = self._samples

    def time_s(self, sample: int) -> float:
        """When the sample passed, by `time.monotonic`, some 10 ms late: by the quickest delivery so far."""
        return self._first_sample_s + sample / RATE_HZ

    def at(self, time_s: float) -> int:
        """The sample that passed at this time; may lie in the future."""
        return round((time_s - self._first_sample_s) * RATE_HZ)

    def close(self) -> None:
        """Stop recording; what there is stays."""
        self._process.kill()
        self._process.wait()
        self._thread.join(timeout=5)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _run(self) -> None:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        left = b""
        while data := os.read(descriptor, 1 << 16):
            now_s = time.monotonic()
            data, left = left + data, b""
            if len(data) % 4:
                data, left = data[: -(len(data) % 4)], data[-(len(data) % 4) :]
            with self._lock:
                self._chunks.append(np.frombuffer(data, np.float32))
                self._samples += len(data) // 4
                # The quickest delivery tells the clock best: the others waited somewhere.
                self._first_sample_s = min(self._first_sample_s, now_s - self._samples / RATE_HZ)


class AudioRig:
    """The server with its devices; `start` and `stop`, or a `with`."""

    def __init__(self, rate_hz: int = RATE_HZ) -> None:
        self.rate_hz = rate_hz
        self.folder = Path(tempfile.mkdtemp(prefix="nearfield-rig-"))  # mode 700, as PulseAudio wants it
        self.environment = {
            **os.environ,
            "XDG_RUNTIME_DIR": str(self.folder),
            "HOME": str(self.folder),
            "PULSE_SERVER": f"unix:{self.folder}/pulse.sock",
        }
        self._modules: dict[str, str] = {}  # name of a device → number of its module
        self._recorders: list[Recorder] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._pid: int | None = None

    def __enter__(self) -> AudioRig:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server with `ci_speaker`, `ci_mic_feed` and `ci_mic`. Raises `RuntimeError` if it is dumb."""
        script = self.folder / "rig.pa"
        script.write_text(_SCRIPT.format(folder=self.folder), encoding="utf-8")
        # Where the rights are there, it goes before busy processes, as on desktops: it is not what is tested.
        priority = ["--realtime=yes", "--high-priority=yes"]
        options = ["--daemonize=yes", "--exit-idle-time=-1", "--use-pid-file=yes", *priority]
        command = ["pulseaudio", "-n", "-F", str(script), *options]
        subprocess.run(command, env=self.environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + _SECONDS_TO_START
        while subprocess.run(["pactl", "info"], env=self.environment, capture_output=True, check=False).returncode:
            if time.monotonic() > deadline:
                raise RuntimeError("the rig's PulseAudio server does not answer")
            time.sleep(0.02)
        self._pid = int((self.folder / "pulse" / "pid").read_text(encoding="utf-8"))
        for name in _MODULES:
            self.load(name)
        self.pactl("set-default-sink", "ci_speaker")
        self.pactl("set-default-source", "ci_mic")
        # A monitor nobody reads loses sound.
        self.speaker = self.record("ci_speaker.monitor")
        self.feed = self.record("ci_mic_feed.monitor")

    def stop(self) -> None:
        """End everything the rig started and remove its files."""
        self.kill_server()
        shutil.rmtree(self.folder, ignore_errors=True)

    def kill_server(self) -> None:
        """The server is gone at once, with every device and recording; `start` begins a new one."""
        for process in self._processes:
            process.kill()
            process.wait()
        for recorder in self._recorders:
            recorder.close()
        self._processes, self._recorders, self._modules = [], [], {}
        if self._pid is not None:
            server = psutil.Process(self._pid) if psutil.pid_exists(self._pid) else None
            if server is not None:
                os.kill(self._pid, signal.SIGKILL)
                server.wait(timeout=5)
        self._pid = None
        for left in (self.folder / "pulse.sock", self.folder / "pulse" / "pid"):
            left.unlink(missing_ok=True)

    def pactl(self, *command: str) -> str:
        """Run `pactl` and return what it prints. Raises `subprocess.CalledProcessError`."""
        done = subprocess.run(
            ["pactl", *command], env=self.environment, check=True, capture_output=True, encoding="utf-8", timeout=10
        )
        return done.stdout.strip()

    # devices and faults

    def load(self, name: str, *, rate_hz: int | None = None) -> None:
        """Plug a device in: one of the three, or any other name, which becomes a further speaker."""
        module = _MODULES.get(name, f"module-null-sink sink_name={name} rate={{rate_hz}} channels=2 norewinds=1")
        self._modules[name] = self.pactl("load-module", *module.format(rate_hz=rate_hz or self.rate_hz).split())

    def unload(self, name: str) -> None:
        """Unplug a device."""
        self.pactl("unload-module", self._modules.pop(name))

    def change_rate(self, name: str, rate_hz: int) -> None:
        """The device goes and comes back with another rate, as when a headset switches its mode."""
        self.unload(name)
        self.load(name, rate_hz=rate_hz)

    def suspend(self, name: str, *, on: bool = True) -> None:
        """Put a device to sleep, or wake it: its streams stand still."""
        kind = "suspend-source" if name == "ci_mic" else "suspend-sink"
        self.pactl(kind, name, "1" if on else "0")

    def echo(self, gain_db: float = -6.0) -> None:
        """From now on the microphone hears the speaker."""
        # With 20 ms the loop itself has gaps on a busy machine.
        module = "module-loopback source=ci_speaker.monitor sink=ci_mic_feed latency_msec=60"
        number = self.pactl("load-module", *module.split())
        inputs = json.loads(self.pactl("-f", "json", "list", "sink-inputs"))
        index = next(entry["index"] for entry in inputs if str(entry["owner_module"]) == number)
        self.pactl("set-sink-input-volume", str(index), f"{10 ** (gain_db / 20):.6f}")
        self._modules["echo"] = number

    # sound

    def say(self, sound: Path | Float32, rate_hz: int = 16_000) -> subprocess.Popen[bytes]:
        """Play a file, or samples float32 `(n,)`, into the microphone; returns the player, to be waited for."""
        if not isinstance(sound, Path):
            path = self.folder / f"said-{len(self._processes)}.wav"
            soundfile.write(path, sound, rate_hz, subtype="PCM_16")
            sound = path
        player = subprocess.Popen(
            ["paplay", "--device=ci_mic_feed", str(sound)],
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._processes.append(player)
        return player

    def record(self, source: str) -> Recorder:
        """Record a source until the rig stops."""
        recorder = Recorder(source, self.environment)
        self._recorders.append(recorder)
        return recorder

    @contextmanager
    def room_noise(self, level_db: float = -70.0, seconds: float = 600.0) -> Iterator[None]:
        """Faint noise in the microphone, as of any room: a virtual one that hears nothing gives exact zeros."""
        noise = np.random.default_rng(0).standard_normal(round(seconds * 16_000)) * 10 ** (level_db / 20)
        player = self.say(noise.astype(np.float32))
        try:
            yield
        finally:
            player.kill()
            player.wait()
