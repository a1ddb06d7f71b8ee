"""Stands in for the audio process: follows the wire protocol without devices; arguments: what it is to do, a folder.

Sends a frame every 10 ms, three times as fast as the real one; counts what it is given as played at once.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import numpy as np
from nearfield.apps.voice.wire import (
    DeviceState,
    Failed,
    Finish,
    Heard,
    Message,
    Play,
    Played,
    Progress,
    encode,
    read_message,
)

MANNER, FOLDER = sys.argv[1], Path(sys.argv[2])
RUN = len(list(FOLDER.glob("run-*")))  # how many there were before
LOG = (FOLDER / f"run-{RUN}").open("w", encoding="utf-8", buffering=1)
HALF = 2400  # of a reply is played by one that is going to fail
lock = threading.Lock()


def send(message: Message) -> None:
    with lock:
        sys.stdout.buffer.write(encode(message))
        sys.stdout.buffer.flush()


def read() -> None:
    got: dict[int, int] = {}
    while (message := read_message(sys.stdin.buffer)) is not None:
        LOG.write(f"{type(message).__name__} {len(message.samples) if isinstance(message, Play) else ''}\n")
        if isinstance(message, Play):
            got[message.reply] = played = got.get(message.reply, 0) + len(message.samples)
            shown = played if RUN or MANNER == "works" else min(played, HALF)
            send(Progress(message.reply, Played(shown, False, 5.0, 0)))
        elif isinstance(message, Finish) and (RUN or MANNER == "works"):
            send(Progress(message.reply, Played(got.get(message.reply, 0), True, 5.0, 0)))
    os._exit(0)


def main() -> None:
    fails = RUN == 0 or MANNER in ("no device", "never answers")
    if MANNER == "no device":
        send(Failed("no microphone was found"))
        return
    if MANNER == "never answers":
        time.sleep(60)
    threading.Thread(target=read, daemon=True).start()
    send(DeviceState(True, "Fake microphone", "Fake speaker", None))
    for frame in range(100_000):
        if fails and frame == 60:
            if MANNER == "dies":
                sys.stderr.write("something broke\n")
                os._exit(3)
            if MANNER == "falls silent":
                time.sleep(60)
            if MANNER == "sends nonsense":
                os.write(1, b"ALSA lib pcm.c: nonsense\n" * 3)
                time.sleep(60)
            if MANNER == "tells":
                send(Failed("the microphone (Fake) is gone"))
                os._exit(1)
        send(Heard(np.full(512, frame, np.float32), 0.5, time.monotonic()))
        time.sleep(0.01)


main()
