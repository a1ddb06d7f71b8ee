"""A thousand interruptions of nano: threads and memory before and after.

    .venv/bin/python docs/measurements/interruptions.py | tee docs/measurements/interruptions.txt

tests/runtime/test_interruptions.py checks what is remembered; here is what is left behind. The slope is a line through
the resident memory after each interruption, without the first quarter, in which buffers are still growing.
"""

import random
import threading
import time

import numpy as np
import psutil
from nearfield import AudioChunk, Omni, Solver
from nearfield.apps.cli.common import DEMO_BUNDLE
from nearfield.nano.questions import HELDOUT, load
from nearfield.runtime.audio import read_audio
from tqdm import tqdm

COUNT = 1000


def main() -> None:
    """Interrupt, and count."""
    rng, omni = random.Random(0), Omni.load(DEMO_BUNDLE, context=1024, threads=1, solver=Solver("rk4", 3))
    spoken = [read_audio(HELDOUT / item.recording) for item in load() if item.task == "sentences" and item.recording]
    conversation, process = omni.conversation(seed=0), psutil.Process()
    threads, heard = threading.active_count(), 0
    resident, waited_ms = np.ones((2, COUNT))  # in memory from the start: the measurement itself does not grow
    for turn in tqdm(range(COUNT), desc="interruptions"):
        conversation.listen(rng.choice(spoken))
        taken, last = 0, rng.choice((0, 9, 12, 15, 30))
        for number, event in enumerate(conversation.respond()):
            taken += len(event.samples) if isinstance(event, AudioChunk) else 0
            if number >= last:
                break
        started = time.perf_counter()
        heard += bool(conversation.interrupt(round(rng.random() * taken)))
        waited_ms[turn] = 1000 * (time.perf_counter() - started)
        resident[turn] = process.memory_info().rss
    left = threading.active_count()
    conversation.close()
    settled = resident[COUNT // 4 :]
    slope = np.polyfit(np.arange(len(settled)), settled, 1)[0]
    print(f"{COUNT} interruptions, of {heard} something had been heard")
    print(f"threads {threads} before, {left} after; {threading.active_count()} when it was closed")
    print(f"resident memory {resident[0] / 1e6:.1f} MB after the first, {resident[-1] / 1e6:.1f} MB after the last")
    print(f"slope of the last {len(settled)}: {slope / 1e3:+.2f} kB an interruption")
    print(f"interrupt() took {np.median(waited_ms):.1f} ms, at most {waited_ms.max():.1f} ms")


if __name__ == "__main__":
    main()
