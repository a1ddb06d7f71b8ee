"""Time and memory of our GPTQ on one layer of 3584 × 3584, the width of 7B.

    python docs/measurements/quantizers_large.py [INPUTS [OUTPUTS]] >> docs/measurements/quantizers.txt

4096 tokens in batches of 512, one thread, asymmetric 4 bits in groups of 128. Memory is the rise of the process's peak
over what it held before, in MiB and in multiples of `K² · 4` bytes, the size of the second moments. Linux.
"""

import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before NumPy is imported

import numpy as np
from nearfield.quantize.awq import clip_and_round, scales_for_gptq, scales_for_rounding
from nearfield.quantize.gptq import gptq
from nearfield.quantize.grid import Grid
from nearfield.quantize.hessian import Factor, Hessian
from nearfield.quantize.rtn import round_to_nearest

TOKENS, BATCH = 4096, 512
Result = TypeVar("Result")


def memory_mib(field: str) -> float:
    """A line of /proc/self/status: `VmRSS`, held now, or `VmHWM`, held at most."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def measured(label: str, unit_mib: float, call: Callable[[], Result]) -> Result:
    """Run once and print what it took."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # VmHWM from here on
    before, began, began_cpu = memory_mib("VmRSS"), time.perf_counter(), time.process_time()
    result = call()
    clock, processor = time.perf_counter() - began, time.process_time() - began_cpu
    rise = memory_mib("VmHWM") - before
    print(f"{label:42}{processor:8.1f}{clock:8.1f}{rise:8.0f}{rise / unit_mib:7.2f}", flush=True)
    return result


def main() -> None:
    """One layer, step by step."""
    columns = int(sys.argv[1]) if len(sys.argv) > 1 else 3584
    rows = int(sys.argv[2]) if len(sys.argv) > 2 else columns
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((rows, columns), np.float32)
    x = rng.standard_normal((TOKENS, columns), np.float32)
    grid = Grid(4, 128, scale_dtype=np.float16)
    hessian = Hessian(columns)
    unit = columns * columns * 4 / 2**20
    print(f"\n{rows} × {columns}, {TOKENS} tokens, one thread, {platform.machine()}, numpy {np.__version__}")
    print(f"{'':42}{'CPU s':>8}{'s':>8}{'MiB':>8}{'/ 4K²':>7}")

    def moments() -> None:
        for start in range(0, TOKENS, BATCH):
            hessian.add(x[start : start + BATCH])

    measured("second moments (the memory: H itself)", unit, moments)
    factor = measured("factor, in place of them", unit, lambda: Factor(hessian, overwrite=True))
    measured("scales for GPTQ", unit, lambda: scales_for_gptq(weight, factor, grid))
    measured("GPTQ without clipping and sweeps", unit, lambda: gptq(weight, factor, grid, clip=False, sweeps=0))
    measured("GPTQ", unit, lambda: gptq(weight, factor, grid))
    measured("scales for rounding", unit, lambda: scales_for_rounding(weight, x, grid))
    measured("clipping and rounding", unit, lambda: clip_and_round(weight, x, grid))
    measured("round-to-nearest", unit, lambda: round_to_nearest(weight, grid))


if __name__ == "__main__":
    main()
