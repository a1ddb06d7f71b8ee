"""A ring gives out what went in, in order, whatever the pieces; from two threads at once too."""

from __future__ import annotations

import threading

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from nearfield.apps.voice.rings import Ring

STEPS = st.lists(st.tuples(st.sampled_from(["write", "read", "take", "skip"]), st.integers(0, 12)), max_size=60)


@given(capacity=st.integers(1, 9), steps=STEPS)
def test_a_ring_behaves_like_a_list(capacity: int, steps: list[tuple[str, int]]) -> None:
    ring, inside, counter = Ring(capacity), list[float](), 0
    for step, count in steps:
        match step:
            case "write":
                samples = np.arange(counter, counter + count, dtype=np.float32)
                written = ring.write(samples)
                assert written == min(count, capacity - len(inside))
                inside += samples[:written].tolist()
                counter += written
            case "read":
                out = np.full(count, -1, np.float32)
                read = ring.read_into(out)
                assert out.tolist() == inside[:count] + [-1] * (count - read)
                inside = inside[count:]
            case "take":
                assert ring.take().tolist() == inside
                inside = []
            case "skip":
                ring.skip_to(ring.read + count - 3)
                inside = inside[max(0, count - 3) :]
        assert (ring.written, ring.read) == (counter, counter - len(inside))
        assert (ring.filled, ring.room) == (len(inside), capacity - len(inside))


def test_two_threads_at_once_lose_nothing() -> None:
    ring, total = Ring(1000), 60_000
    taken: list[np.ndarray[tuple[int], np.dtype[np.float32]]] = []

    def write() -> None:
        rng, next_sample = np.random.default_rng(0), 0
        while next_sample < total:
            count = min(int(rng.integers(1, 700)), total - next_sample)
            next_sample += ring.write(np.arange(next_sample, next_sample + count, dtype=np.float32))

    writer = threading.Thread(target=write)
    writer.start()
    while ring.read < total:
        taken.append(ring.take())
    writer.join()
    np.testing.assert_array_equal(np.concatenate(taken), np.arange(total, dtype=np.float32))
