"""Memory of nano's process over many turns, with `keep_memory_steady` and without, side by side.

    .venv/bin/python docs/measurements/steady_memory.py [TURNS] | tee docs/measurements/steady_memory.txt

Turns are held as fast as they can be, without devices: questions are heard block by block, replies taken whole; two
processes at once. Counted is anonymous memory, what a process itself allocated; the rest are pages of mapped files.
Linux with glibc.
"""

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
from nearfield.apps.cli.common import DEMO_BUNDLE
from nearfield.apps.voice.steady_memory import keep_memory_steady
from nearfield.nano.questions import HELDOUT, load
from nearfield.runtime.audio import read_audio
from nearfield.runtime.events import AudioChunk
from nearfield.runtime.omni import Omni

EVERY = 50


def anonymous_kib() -> int:
    """What this process has in memory that is no file."""
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))


def turns(name: str, count: int) -> None:
    """Hold so many turns and print, for every fifty, the memory after them and the slope within them."""
    rng, omni = random.Random(0), Omni.load(DEMO_BUNDLE, context=640, threads=1)
    spoken = [HELDOUT / item.recording for item in load() if item.task == "sentences" and item.recording]
    conversation, seen = omni.conversation(seed=0), np.zeros(count)
    for turn in range(count):
        samples = read_audio(rng.choice(spoken))
        for start in range(0, len(samples), 512):
            conversation.listen(samples[start : start + 512])
        events = conversation.respond()
        conversation.interrupt(sum(len(event.samples) for event in events if isinstance(event, AudioChunk)))
        seen[turn] = anonymous_kib()
        if turn % EVERY == EVERY - 1:
            slope = np.polyfit(range(EVERY), seen[turn + 1 - EVERY : turn + 1], 1)[0]
            held_mib = seen[turn] / 1024
            print(f"{name:8} after {turn + 1:4} turns {held_mib:6.1f} MiB, {slope:+6.1f} KiB a turn", flush=True)


def main() -> None:
    """Begin one of each kind, or be one."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    if len(sys.argv) > 2:
        if sys.argv[2] == "steady":
            keep_memory_steady()
        turns(sys.argv[2], count)
        return
    both = [subprocess.Popen([sys.executable, __file__, str(count), kind]) for kind in ("steady", "as it is")]
    for process in both:
        process.wait()


if __name__ == "__main__":
    main()
