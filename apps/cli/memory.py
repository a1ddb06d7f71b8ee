"""Memory on the command line: what is free here, a plan as a table, and the refusal of a plan that does not fit.

Inputs: a bundle and a `Workload` → outputs: text for `inspect`, an error for commands that would load the bundle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from ...errors import InputError
from .common import table
from .probe import nvidia_smi

if TYPE_CHECKING:
    from ...runtime.memory_plan import MemoryLine, MemoryPlan, MemoryPlanner, Place, Workload
    from ...runtime.session import Device

OVERRIDE = "--ignore-memory"
OVERRIDE_HELP = "start even when more memory is planned for than is free"

_MIB, _GIB = 1 << 20, 1 << 30
_CONTEXT_STEP = 64  # contexts are proposed in multiples of this


class Free(Protocol):
    """How much memory is free for a device; None where nobody knows."""

    def __call__(self, device: Device, /) -> int | None:
        """Bytes; of main memory for `cpu`, of the GPU otherwise."""
        ...


def available_bytes(device: Device) -> int | None:
    """Memory free now: main memory for `cpu`; else that of the GPU as nvidia-smi tells it, None when it cannot.

    With several GPUs it is not known either: which of them a provider takes is up to CUDA.
    """
    if device == "cpu":
        import psutil

        return int(psutil.virtual_memory().available)
    return parse_free(nvidia_smi("memory.free"))


def parse_free(text: str) -> int | None:
    """Free bytes of the one GPU in nvidia-smi's answer, a line in MiB for each."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return int(lines[0]) * _MIB if len(lines) == 1 and lines[0].isdigit() else None


def gib(size_bytes: float) -> str:
    """Bytes for people, in powers of 1024 as memory is sold."""
    return f"{size_bytes / _GIB:.2f} GiB"


def free_bytes(workload: Workload, free: Free = available_bytes) -> dict[Place, int | None]:
    """What is free at each place where a workload takes memory."""
    found: dict[Place, int | None] = {"host": free("cpu")}
    if workload.device != "cpu":
        found["device"] = free(workload.device)
    return found


def describe(plan: MemoryPlan, free: Mapping[Place, int | None]) -> str:
    """The plan as a table, what it adds up to, and whether it fits into what is free."""
    workload = plan.workload
    video = ""
    if plan.video_positions:
        left = workload.context - plan.video_positions
        video = (
            f", a video of {workload.video_seconds:g} s with sound ({workload.video_fps:g} frames a second, largest "
            f"size: {plan.video_positions:,} positions, {left:,} left for text)"
        )
    lines = [
        f"memory on device {workload.device}, {workload.context:,} positions of context{video}",
        "",
        table(list(_rows(plan)), right=frozenset({2, 3, 4, 5})),
        "",
    ]
    return "\n".join([*lines, *(_verdict(plan, place, size) for place, size in free.items())])


def _rows(plan: MemoryPlan) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("part", "memory", "weights", "context", "at work", "all", "")]
    for line in plan.lines:
        parts = (line.weights_bytes, line.cache_bytes, line.work_bytes, line.total_bytes)
        rows.append((line.name, _NAMES[line.place], *(gib(part) if part else "" for part in parts), line.note))
    return rows


_NAMES: dict[Place, str] = {"host": "main", "device": "GPU"}


def _verdict(plan: MemoryPlan, place: Place, free: int | None) -> str:
    needed = f"{_NAMES[place]} memory: {gib(plan.needed_bytes(place))} needed at most"
    if free is None:
        return f"{needed}; how much is free is not known here"
    if plan.needed_bytes(place) <= free:
        return f"{needed}, {gib(free)} free: it fits"
    return f"{needed}, {gib(free)} free: it does NOT fit"


def require_fit(planner: MemoryPlanner, workload: Workload, free: Free = available_bytes) -> None:
    """Raise `InputError` when a workload's plan does not fit into what is free, saying what to change.

    Memory of which nobody knows how much is free is no reason to refuse. Raises as `MemoryPlanner.plan` too.
    """
    plan, found = planner.plan(workload), free_bytes(workload, free)
    for place, size in found.items():
        needed = plan.needed_bytes(place)
        if size is not None and needed > size:
            largest = plan.largest(place)
            raise InputError(
                f"this needs {gib(needed)} of {_NAMES[place]} memory at most, {gib(size)} are free; the largest part "
                f"is {largest.name} with {gib(largest.total_bytes)} ({_most(largest)}). "
                f"Close other programs, or use {', or '.join(_advice(planner, workload, found))}; "
                f"to try it anyway: {OVERRIDE}"
            )


def _most(line: MemoryLine) -> str:
    """Of what a line has most."""
    parts = {"weights": line.weights_bytes, "context": line.cache_bytes, "work": line.work_bytes}
    return f"mostly {max(parts, key=lambda part: parts[part])}"


def _advice(planner: MemoryPlanner, workload: Workload, free: Mapping[Place, int | None]) -> list[str]:
    """What could make it fit, the surest first."""
    advice = []
    context = planner.largest_context(workload, free)
    if context is not None:
        rounded = context // _CONTEXT_STEP * _CONTEXT_STEP or context
        advice.append(f"a smaller context, of which this fits: --context {rounded}")
    shorter = replace(workload, video_seconds=0.0)
    if workload.video_seconds and planner.plan(shorter).fits(free):
        advice.append("a shorter video")
    if planner.manifest.components["thinker"].quantization is None:
        advice.append("an INT4 bundle (nearfield export --bits 4)")
    elif workload.device == "cpu" and planner.manifest.components["thinker"].dtype == "float16":
        advice.append("a bundle made for CPUs, which takes less there (nearfield export --dtype float32)")
    advice.append(f"another device (--device {'cuda' if workload.device == 'cpu' else 'cpu'})")
    return advice
