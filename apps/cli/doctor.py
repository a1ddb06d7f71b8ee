"""`nearfield doctor`: what this machine has, what it lacks, and how to get it.

Facts come from a `Probe` (`probe.py` asks the machine itself), so that what is said of them can be tested on any
machine. Exit code 0 when a bundle can be run on the CPU, 1 when not.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ... import __version__
from .common import install_command, size, table
from .probe import Machine, Probe

NAME = "doctor"
SUMMARY = "check this machine and its packages"
DESCRIPTION = """\
Check Python, packages, ONNX Runtime's devices, the GPU, memory and disk, and say how to get what is missing.

Exit code 0 if a bundle can be run here on the CPU. What only some uses need is marked "optional"."""
EXAMPLES = """\
example:
  nearfield doctor"""

RUN_PACKAGES = (
    "numpy",
    "onnxruntime",
    "tokenizers",
    "jinja2",
    "safetensors",
    "msgspec",
    "soundfile",
    "soxr",
    "pillow",
    "tqdm",
    "psutil",
)
"""The packages without which no bundle runs; the same as `dependencies` in pyproject.toml."""
EXPORT_PACKAGES = ("onnx", "onnx-ir", "onnxscript", "threadpoolctl")
VERIFY_PACKAGES = ("torch", "transformers", "accelerate")
_GPU_RUNTIME, _RTX_PLUGIN = "onnxruntime-gpu", "onnxruntime-ep-nv-tensorrt-rtx"
_GPU_SWAP = (
    "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install "
    '"onnxruntime-gpu[cuda,cudnn]>=1.24,<2" (the two packages share one folder: keep only one)'
)


@dataclass(frozen=True)
class Finding:
    """One line of the report; `advice` says how to get what is missing."""

    state: Literal["ok", "missing", "optional", "note"]
    subject: str
    detail: str
    advice: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments: none."""


def run(args: argparse.Namespace) -> int:  # noqa: ARG001  # the signature every command has
    """Examine this machine and print the report."""
    findings = examine(Machine())
    print(report(findings))
    return exit_code(findings)


def examine(probe: Probe) -> list[Finding]:
    """All findings, in the order they are printed."""
    return [
        *_python(probe),
        *_packages(probe),
        *_devices(probe),
        *_extra(probe, "export", "making bundles", EXPORT_PACKAGES),
        *_extra(probe, "verify", "comparing bundles with the reference", VERIFY_PACKAGES),
        *_room(probe),
    ]


def exit_code(findings: list[Finding]) -> int:
    """0 when nothing needed for running a bundle on the CPU is missing."""
    return int(any(finding.state == "missing" for finding in findings))


def report(findings: list[Finding]) -> str:
    """The findings as text, the verdict last."""
    lines = [table([(finding.state, finding.subject, finding.detail) for finding in findings])]
    advised = [finding for finding in findings if finding.advice]
    if advised:
        lines += ["", "How to get what is missing:"]
        lines += [f"  {finding.subject}: {finding.advice}" for finding in advised]
    verdict = "A bundle can NOT be run here yet." if exit_code(findings) else "A bundle can be run here on the CPU."
    return "\n".join([*lines, "", verdict])


def _python(probe: Probe) -> Iterator[Finding]:
    yield Finding("ok", "Python", f"{probe.python_version()} on {probe.platform()}")
    yield Finding("ok", "Nearfield", __version__)


def _packages(probe: Probe) -> Iterator[Finding]:
    gpu_runtime = probe.package_version(_GPU_RUNTIME)
    for package in RUN_PACKAGES:
        version = probe.package_version(package)
        if version is not None:
            yield Finding("ok", package, version)
        elif package == "onnxruntime" and gpu_runtime is not None:
            yield Finding("ok", _GPU_RUNTIME, f"{gpu_runtime}, in place of onnxruntime")
        else:
            yield Finding("missing", package, "not installed", f"pip install {package}")
    if gpu_runtime is not None and probe.package_version("onnxruntime") is not None:
        yield Finding("note", _GPU_RUNTIME, f"{gpu_runtime}, beside onnxruntime: which one loads is chance", _GPU_SWAP)


def _devices(probe: Probe) -> Iterator[Finding]:
    """Each device is tried by loading a graph of the demo bundle on it, as a bundle would be."""
    providers = probe.onnxruntime_providers()
    failure = probe.device_failure("cpu")
    yield _device("device cpu", failure, needed=True)
    yield Finding("note", "ONNX Runtime has", ", ".join(providers) or "no providers")
    gpus = probe.gpus()
    for gpu in gpus:
        yield Finding("ok", "GPU", f"{gpu.name}, driver {gpu.driver}, {size(gpu.memory_bytes)}")
    if not gpus:
        yield Finding("optional", "GPU", "no NVIDIA GPU found (nvidia-smi is missing or lists none)")
    if "CUDAExecutionProvider" in providers:
        yield _device("device cuda", probe.device_failure("cuda"))
    else:
        yield Finding("optional", "device cuda", "ONNX Runtime here has no CUDA provider", _GPU_SWAP if gpus else "")
    plugin = probe.package_version(_RTX_PLUGIN)
    if plugin is not None:
        yield Finding("ok", _RTX_PLUGIN, plugin)
        yield _device("device tensorrt-rtx", probe.device_failure("tensorrt-rtx"))
    else:
        advice = f"pip install {_RTX_PLUGIN} (RTX 30 series or later)" if gpus else ""
        yield Finding("optional", "device tensorrt-rtx", f"{_RTX_PLUGIN} is not installed", advice)


def _device(subject: str, failure: str | None, *, needed: bool = False) -> Finding:
    if failure is None:
        return Finding("ok", subject, "a graph loads on it")
    return Finding("missing" if needed else "optional", subject, "does not work", failure)


def _extra(probe: Probe, extra: str, use: str, packages: tuple[str, ...]) -> Iterator[Finding]:
    versions = {package: probe.package_version(package) for package in packages}
    absent = [package for package, version in versions.items() if version is None]
    if absent:
        detail = f"{', '.join(absent)} not installed; only for {use}"
        yield Finding("optional", f"[{extra}]", detail, install_command(extra))
    else:
        yield Finding("ok", f"[{extra}]", ", ".join(f"{package} {version}" for package, version in versions.items()))


def _room(probe: Probe) -> Iterator[Finding]:
    memory = probe.memory()
    yield Finding("note", "memory", f"{size(memory.available_bytes)} of {size(memory.total_bytes)} free")
    yield Finding("note", "disk", f"{size(probe.free_disk_bytes())} free in the current directory")
