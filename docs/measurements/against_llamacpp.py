"""The Thinker of the published 3B shape on a CPU beside llama.cpp: speed in turns, ratios, memory.

    python docs/measurements/against_llamacpp.py measure WORKDIR PYTHON [--shape tiny] [--rounds 5]

PYTHON is that of an environment with llama-cpp-python and gguf; against_llamacpp.sh makes one and calls this. Weights
are noise, written to WORKDIR at the first call: here INT4 with groups of 128 as `nearfield export` has them (computed
in int8, the cache and all else in float32 or float16), there Q4_0 for every matrix, with llama.cpp's own defaults.
Both have the same threads and context and give the logits of the last position only; here its hidden states besides.

Each model is a process; one works at a time, and all wait for a moment in between. A ratio is that of two models in the
same round, above 1 where ours is faster. Needs the extra `[export]`; Linux.
"""

import argparse
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime
from encoders import Noise
from llamacpp_side import CHUNK, CONTEXT, SHAPES, THREADS, Shape, serve
from nearfield.export.bind import write_component
from nearfield.export.decoder import DecoderConfig
from nearfield.export.graph import Style
from nearfield.export.thinker import thinker_graph
from nearfield.runtime.decoder import CHUNK_POSITIONS, Decoder, Int64
from nearfield.runtime.manifest import Component, FloatType, KVCache
from nearfield.runtime.manifest import Thinker as Settings
from nearfield.runtime.session import Array, SessionSettings, open_session
from nearfield.runtime.thinker import Thinker
from tqdm import tqdm

PAST = (0, 2048)
TOKENS = 32
"""In a measurement of decoding."""
CASES = {"decode": (TOKENS, 1), "prefill of 256": (256, 256), "prefill of 512": (512, 512)}
PAUSE_S = 0.3
"""Threads that still spin for work have gone to sleep."""


@dataclass
class Process:
    """One of the models, and the conversation with it (`llamacpp_side.serve`)."""

    name: str
    process: "subprocess.Popen[str]"

    def ask(self, past: int, count: int, at_once: int) -> float:
        """Seconds it takes to feed `count` tokens after `past`."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{past} {count} {at_once}\n")
        self.process.stdin.flush()
        return float(self.answer())

    def answer(self) -> str:
        """The next line it says."""
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            raise SystemExit(f"{self.name} ended with {self.process.wait()}")
        return line.strip()

    def peak_bytes(self) -> float:
        """End it; the most memory it held."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return float(self.answer())


class Rows:
    """An embedding table of noise. A bundle's is mapped into memory, which holds a few of its rows: so does this."""

    def __init__(self, width: int) -> None:
        self._rows = (0.02 * np.random.default_rng(0).standard_normal((64, width))).astype(np.float16)

    def __getitem__(self, rows: Int64) -> Array:
        return self._rows[rows % len(self._rows)]


class Nearfield:
    """Our Thinker."""

    def __init__(self, folder: Path, shape: Shape, float_type: FloatType) -> None:
        assert CHUNK == CHUNK_POSITIONS
        cache = KVCache(layers=shape.layers, kv_heads=shape.kv_heads, head_dim=shape.head_dim)
        component = Component(graph="", data="", dtype=float_type, dialect="ort", parameters=0, quantization=None)
        settings = Settings(
            hidden_size=shape.hidden_size, vocab_size=shape.vocab_size, max_positions=CONTEXT, kv_cache=cache,
            rope_theta=1e6, mrope_section=[16, 24, 24], eos_token_ids=[], embedding="",
        )  # fmt: skip
        decoder = Decoder(
            open_session(folder / "thinker.onnx", SessionSettings(threads=THREADS)), component, cache,
            name="Thinker", vocab_size=shape.vocab_size, context=CONTEXT,
        )  # fmt: skip
        self._thinker = Thinker(decoder, settings, Rows(shape.hidden_size))

    def truncate(self, length: int) -> None:
        """Forget all positions from `length` on."""
        self._thinker.truncate(length)

    def feed(self, token_ids: np.ndarray) -> None:
        """Append tokens."""
        start = self._thinker.decoder.length
        positions = np.broadcast_to(np.arange(start, start + len(token_ids)), (3, len(token_ids)))
        self._thinker.prefill(self._thinker.embed(token_ids), positions)


def write(shape: Shape, float_type: FloatType, folder: Path) -> None:
    """Write our graph of noise."""
    config = DecoderConfig(
        hidden_size=shape.hidden_size, layers=shape.layers, heads=shape.heads, kv_heads=shape.kv_heads,
        head_dim=shape.head_dim, intermediate_size=shape.intermediate_size, vocab_size=shape.vocab_size,
        max_positions=CONTEXT, norm_epsilon=1e-6, rope_theta=1e6, mrope_section=(16, 24, 24),
    )  # fmt: skip
    write_component(thinker_graph(config, Style("ort", float_type, bits=4)), Noise(), folder)


def start(work: Path, python: str, shape: str) -> list[Process]:
    """Write what is not there yet, and start all three."""
    here, pipe, started = Path(__file__).parent, subprocess.PIPE, []
    ours, theirs = [sys.executable, here / "against_llamacpp.py"], [python, here / "llamacpp_side.py"]
    for name, program in (("float32", ours), ("float16", ours), ("llama.cpp", theirs)):
        folder, unfinished = work / f"{shape}-{name}", work / f"{shape}-{name}.part"
        if not folder.exists():
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            subprocess.run([*program, "write", shape, name, unfinished], check=True)
            unfinished.rename(folder)
        process = subprocess.Popen([*program, "serve", shape, name, folder], stdin=pipe, stdout=pipe, text=True)
        started.append(Process(name if program is theirs else f"nearfield {name}", process))
        started[-1].answer()  # it is loaded
    return started


def measure(work: Path, python: str, shape: str, rounds: int) -> None:
    """Measure in turns, and print."""
    started = start(work, python, shape)
    times: dict[tuple[str, int, str], list[float]] = {}
    for past in PAST:
        for each in started:
            each.ask(0, max(past, CHUNK), CHUNK)
        for number in tqdm(range(rounds), desc=f"after {past} positions"):
            for case, (count, at_once) in CASES.items():
                for each in started[:: -1 if number % 2 else 1]:
                    time.sleep(PAUSE_S)
                    times.setdefault((case, past, each.name), []).append(count / each.ask(past, count, at_once))
    report([each.name for each in started], times)
    for each in started:
        print(f"peak memory, {each.name}: {each.peak_bytes() / 1e9:.2f} GB")


def report(sides: list[str], times: dict[tuple[str, int, str], list[float]]) -> None:
    """Print tokens a second, and the ratios of ours to the last side's."""
    *ours, other = sides
    print(f"{platform.machine()}, {THREADS} threads, onnxruntime {onnxruntime.__version__}; tokens a second, medians")
    print(f"{'':30}" + "".join(f"{side:>20}" for side in sides) + "".join(f"{side + ' ratio':>36}" for side in ours))
    for case, past in dict.fromkeys((case, past) for case, past, _ in times):
        speeds = [times[case, past, side] for side in sides]
        line = f"{f'{case} after {past}':30}" + "".join(f"{median(speed):>20.2f}" for speed in speeds)
        for side in ours:
            ratios = [a / b for a, b in zip(times[case, past, side], times[case, past, other], strict=True)]
            line += f"{f'{median(ratios):.3f} ({min(ratios):.3f} … {max(ratios):.3f})':>36}"
        print(line)


def main() -> None:
    """Measure, or be one of ours."""
    if sys.argv[1] in ("write", "serve"):
        task, shape, float_type, folder = sys.argv[1], SHAPES[sys.argv[2]], sys.argv[3], Path(sys.argv[4])
        assert float_type in ("float32", "float16")
        if task == "write":
            write(shape, float_type, folder)
        else:
            serve(Nearfield(folder, shape, float_type), shape.vocab_size)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["measure"])
    parser.add_argument("work", type=Path)
    parser.add_argument("python")
    parser.add_argument("--shape", choices=SHAPES, default="3b")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    measure(args.work, args.python, args.shape, args.rounds)


if __name__ == "__main__":
    main()
