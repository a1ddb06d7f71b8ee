"""What the sound server says of streams, watched from a process of its own as in the audio process."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable

from audio_rig import AudioRig

# Prints, ten times a second, how often the server was asked and where the streams of a process go.
_WATCH = """
import os, sys, time
from nearfield.apps.voice import pulse

os.getpid = lambda: int(sys.argv[1])
asked, ask = [], pulse._streams
pulse._streams = lambda server: (asked.append(server), ask(server))[1]
watch = pulse.Watch()
while True:
    streams = watch.streams
    print(len(asked), streams and streams.microphone and streams.microphone.name, flush=True)
    time.sleep(0.1)
"""


class Watched:
    """A process that watches another's microphone."""

    def __init__(self, pid: int) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", _WATCH, str(pid)], stdout=subprocess.PIPE, text=True)

    def next(self) -> tuple[int, str]:
        """How often it asked so far, and the microphone's name."""
        assert self.process.stdout is not None
        asked, name = self.process.stdout.readline().split()
        return int(asked), name

    def until(self, right: Callable[[str], bool], seconds: float) -> int:
        """Wait for a name; returns how often it asked by then."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            asked, name = self.next()
            if right(name):
                return asked
        raise AssertionError(f"the microphone is still {name}")


def test_a_moved_stream_is_told_at_once_and_nothing_is_asked_meanwhile(rig: AudioRig) -> None:
    rig.load("headset")
    recorder = rig.record("ci_mic")
    watched = Watched(recorder.pid)
    try:
        watched.until(lambda name: name == "ci_mic", 10)
        time.sleep(0.5)  # what followed from the beginning
        before = watched.until(lambda _: True, 1)
        start = time.monotonic()
        while time.monotonic() < start + 2.0:
            after, _ = watched.next()
        assert after - before <= 2, "it asks when it is told to, and every three seconds to be sure"
        rig.pactl("move-source-output", _stream_of(rig, recorder.pid), "headset.monitor")
        watched.until(lambda name: name == "headset.monitor", 1.0)
        # A server that goes and comes is listened to again.
        rig.kill_server()
        rig.start()
        rig.record("ci_mic")  # of another process
        watched.until(lambda name: name == "None", 5.0)
    finally:
        watched.process.kill()
        watched.process.wait()
        assert watched.process.stdout is not None
        watched.process.stdout.close()


def _stream_of(rig: AudioRig, pid: int) -> str:
    """The number of a process's recording stream."""
    (number,) = [
        entry["index"]
        for entry in json.loads(rig.pactl("-f", "json", "list", "source-outputs"))
        if entry["properties"].get("application.process.id") == str(pid)
    ]
    return str(number)
