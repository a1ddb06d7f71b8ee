"""ONNX Runtime sessions: one graph on one device, with no silent fall-back to another.

Inputs: a graph file and a device → output: a `Session`, which takes and gives NumPy arrays by name, and lets a decoder
bind memory of the device to its inputs and outputs.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as native

from ..errors import BundleError, DeviceError

Device = Literal["cpu", "cuda", "tensorrt-rtx"]
DEVICES: tuple[Device, ...] = get_args(Device)

Array = npt.NDArray[Any]

_CUDA = "CUDAExecutionProvider"
_RTX_MODULE = "onnxruntime_ep_nv_tensorrt_rtx"
_RTX_PACKAGE = "onnxruntime-ep-nv-tensorrt-rtx"
_NVIDIA_PCI_VENDOR = 0x10DE
_ERRORS_ONLY = 3  # ONNX Runtime's log severity: 2 would list every operator a provider leaves to the CPU
# ONNX Runtime's errors have no base of their own.
_LOAD_ERRORS = (
    native.EPFail, native.Fail, native.InvalidGraph, native.InvalidProtobuf, native.NotImplemented,
    native.RuntimeException, RuntimeError,
)  # fmt: skip


@dataclass(frozen=True)
class SessionSettings:
    """How sessions are opened, the same for all graphs of a bundle."""

    device: Device = "cpu"
    threads: int | None = None
    """Threads one operator may use on the CPU; None leaves it to ONNX Runtime, which takes the physical cores."""
    gpu_memory_limit_bytes: int | None = None
    """Most memory the arena of one session may take on a GPU; None sets no limit. Caches are outside of it."""


@dataclass(frozen=True)
class Memory:
    """Where a session's device keeps tensors, in ONNX Runtime's words."""

    device_type: str
    device_id: int = 0
    vendor_id: int = -1

    def zeros(self, shape: Sequence[int], dtype: npt.DTypeLike) -> onnxruntime.OrtValue:
        """Allocate a tensor of zeros here. On a CPU the pages of a large one are taken as they are first used."""
        return self.place(np.zeros(shape, dtype))

    def empty(self, shape: Sequence[int], dtype: npt.DTypeLike) -> onnxruntime.OrtValue:
        """Allocate a tensor here without filling it."""
        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(
            list(shape), np.dtype(dtype).type, self.device_type, self.device_id, self.vendor_id
        )

    def place(self, array: Array) -> onnxruntime.OrtValue:
        """Bring an array here; on a CPU the tensor shares the array's memory."""
        return onnxruntime.OrtValue.ortvalue_from_numpy(
            np.ascontiguousarray(array), self.device_type, self.device_id, self.vendor_id
        )


class Session:
    """One graph, loaded. Calls are synchronous; no state is kept between them."""

    def __init__(self, session: onnxruntime.InferenceSession, memory: Memory) -> None:
        self._session, self.memory = session, memory
        self.input_names: tuple[str, ...] = tuple(port.name for port in session.get_inputs())
        self.output_names: tuple[str, ...] = tuple(port.name for port in session.get_outputs())
        self.providers: tuple[str, ...] = tuple(session.get_providers())

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph on arrays, given and returned by the names of its inputs and outputs."""
        outputs = self._session.run(list(self.output_names), dict(inputs))
        return dict(zip(self.output_names, outputs, strict=True))

    def binding(self) -> onnxruntime.IOBinding:
        """Return a binding of this session's inputs and outputs to memory, empty as yet."""
        return self._session.io_binding()

    def run_bound(self, binding: onnxruntime.IOBinding) -> None:
        """Run the graph on what `binding` names; its outputs are complete when this returns."""
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()


def open_session(graph: Path, settings: SessionSettings, *, accuracy_level: int | None = None) -> Session:
    """Load `graph` on the device of `settings`.

    `accuracy_level` is that of the bundle's INT4 layers: 1 computes in float32, 4 with int8 activations on a CPU.
    ONNX Runtime needs it where 4-bit products are DequantizeLinear and MatMul, which it fuses while it loads.

    Raises `DeviceError` when the device's package, driver or hardware is missing, and `BundleError` when the graph
    cannot be loaded on a CPU.
    """
    if settings.device not in DEVICES:
        raise DeviceError(f"there is no device {settings.device!r}; expected one of {', '.join(DEVICES)}")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _ERRORS_ONLY
    # A plan of where every tensor goes would be kept for each shape ever seen, 25 KiB for one of a vocoder's: a
    # conversation meets new lengths all the time, and without such plans runs are as fast.
    options.enable_mem_pattern = False
    # Within a run, threads wait for work by spinning, which is quickest; between runs the cores are for other stages.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if settings.threads is not None:
        options.intra_op_num_threads = settings.threads
    if accuracy_level is not None:
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(accuracy_level))
    if settings.device == "cuda":
        return _open_cuda(graph, options, settings)
    if settings.device == "tensorrt-rtx":
        return _open_tensorrt_rtx(graph, options)
    return Session(_load(graph, options, settings.device, ["CPUExecutionProvider"]), Memory("cpu"))


def _load(
    graph: Path, options: onnxruntime.SessionOptions, device: Device, providers: Sequence[Any] | None = None
) -> onnxruntime.InferenceSession:
    """Create the session, never falling back to providers that were not asked for."""
    try:
        return onnxruntime.InferenceSession(graph, options, providers=providers, enable_fallback=0)
    except _LOAD_ERRORS as error:
        if device == "cpu":
            raise BundleError(
                f"{graph} cannot be loaded by ONNX Runtime {onnxruntime.__version__}: {error}; export the bundle again"
            ) from error
        raise DeviceError(
            f"{graph.name} cannot be loaded on device {device!r}: {error}; check the GPU, its driver and its free "
            "memory (nvidia-smi), or use device 'cpu'"
        ) from error


def _open_cuda(graph: Path, options: onnxruntime.SessionOptions, settings: SessionSettings) -> Session:
    if _CUDA not in onnxruntime.get_available_providers():
        raise DeviceError(
            f"device 'cuda' needs the package onnxruntime-gpu; the ONNX Runtime {onnxruntime.__version__} installed "
            f"here has {', '.join(onnxruntime.get_available_providers())}. The two packages share one folder, so: "
            'pip uninstall -y onnxruntime onnxruntime-gpu, then pip install "onnxruntime-gpu[cuda,cudnn]>=1.24,<2"'
        )
    provider_options = {
        "use_tf32": "0",  # its 10-bit mantissas are not float32
        "arena_extend_strategy": "kSameAsRequested",  # doubling would take twice what is needed and keep it
    }
    if settings.gpu_memory_limit_bytes is not None:
        provider_options["gpu_mem_limit"] = str(settings.gpu_memory_limit_bytes)
    missing = _preload_cuda_libraries()
    session = _load(graph, options, "cuda", [(_CUDA, provider_options), "CPUExecutionProvider"])
    if _CUDA not in session.get_providers():
        raise DeviceError(
            "device 'cuda' was asked for, but ONNX Runtime could not start its CUDA provider and dropped it. "
            f"{missing or 'ONNX Runtime printed the reason above'}. Check that nvidia-smi lists a GPU and that the "
            f"driver supports CUDA {getattr(onnxruntime, 'cuda_version', '')}, and install the CUDA libraries: "
            "pip install \"onnxruntime-gpu[cuda,cudnn]\"; or use device 'cpu'"
        )
    return Session(session, Memory("cuda"))


def _preload_cuda_libraries() -> str:
    """Load CUDA and cuDNN from pip's nvidia packages; returns what ONNX Runtime says of those it could not load.

    It reports on standard output, which belongs to the application: caught here, and part of the error if one follows.
    """
    with contextlib.redirect_stdout(io.StringIO()) as said:
        onnxruntime.preload_dlls()
    return " ".join(said.getvalue().split())


def _open_tensorrt_rtx(graph: Path, options: onnxruntime.SessionOptions) -> Session:
    plugin = _tensorrt_rtx_plugin()
    name = plugin.get_ep_name()
    if not _ep_devices(name):  # registering is once a process, and a second time is an error
        try:
            onnxruntime.register_execution_provider_library(name, plugin.get_library_path())
        except _LOAD_ERRORS as error:
            raise DeviceError(
                f"device 'tensorrt-rtx': {_RTX_PACKAGE} could not be loaded: {error}; update the NVIDIA driver and "
                f"onnxruntime (installed: {onnxruntime.__version__}), or use device 'cpu'"
            ) from error
    devices = _ep_devices(name)
    if not devices:
        raise DeviceError(
            f"device 'tensorrt-rtx': {_RTX_PACKAGE} finds no GPU it supports; expected an NVIDIA RTX card of the 30 "
            "series or later with a current driver (nvidia-smi lists it), or use device 'cuda' or 'cpu'"
        )
    options.add_provider_for_devices(devices[:1], {})
    session = _load(graph, options, "tensorrt-rtx")
    if name not in session.get_providers():
        raise DeviceError(
            f"device 'tensorrt-rtx' was asked for, but ONNX Runtime dropped its provider while loading {graph.name}; "
            "update the NVIDIA driver, or use device 'cuda' or 'cpu'"
        )
    return Session(session, Memory("gpu", 0, _NVIDIA_PCI_VENDOR))


def _tensorrt_rtx_plugin() -> ModuleType:
    try:
        return importlib.import_module(_RTX_MODULE)
    except ModuleNotFoundError as error:
        raise DeviceError(
            f"device 'tensorrt-rtx' needs the package {_RTX_PACKAGE}, which is not installed here: "
            f"pip install {_RTX_PACKAGE} (Windows or Linux, an NVIDIA RTX card of the 30 series or later)"
        ) from error


def _ep_devices(name: str) -> list[Any]:
    return [device for device in onnxruntime.get_ep_devices() if device.ep_name == name]
