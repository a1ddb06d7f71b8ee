"""Sessions on the CPU, and what people read when a device cannot be had. GPUs themselves are not tested here."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import glibc
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from nearfield.errors import BundleError, DeviceError
from nearfield.export.graph import FLOAT32, Module, Op, Port, Style, Value, build
from nearfield.runtime.session import Device, Memory, SessionSettings, open_session


class Doubling(Module):
    """`doubled = x + x`."""

    def forward(self, op: Op, x: Value) -> list[Value]:
        return [op.Add(x, x)]


class Growing(Module):
    """Tensors that are all needed at the end, so that each has a place of its own."""

    def forward(self, op: Op, x: Value) -> list[Value]:
        steps = [x]
        for _ in range(40):
            steps.append(op.Exp(steps[-1]))
        return [op.Sum(*steps)]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    style = Style("ort", "float32")
    model = build(Doubling(), style, "doubling", [Port("x", FLOAT32, ("n",))], [Port("doubled", FLOAT32, ("n",))])
    path = tmp_path_factory.mktemp("graph") / "doubling.onnx"
    ir.save(model, path)
    return path


def test_arrays_go_in_and_out_by_name(graph: Path) -> None:
    session = open_session(graph, SessionSettings(threads=1), accuracy_level=1)
    assert (session.input_names, session.output_names) == (("x",), ("doubled",))
    assert session.providers == ("CPUExecutionProvider",)
    outputs = session.run({"x": np.array([1, 2.5], np.float32)})
    np.testing.assert_array_equal(outputs["doubled"], np.array([2, 5], np.float32))


def test_bound_memory_is_read_and_written_in_place(graph: Path) -> None:
    session = open_session(graph, SessionSettings(threads=1))
    memory = session.memory.zeros((4,), np.float32)
    array = np.arange(4, dtype=np.float32)
    binding = session.binding()
    binding.bind_ortvalue_input("x", session.memory.place(array))
    binding.bind_ortvalue_output("doubled", memory)
    session.run_bound(binding)
    np.testing.assert_array_equal(memory.numpy(), 2 * array)
    assert session.memory == Memory("cpu")
    assert session.memory.empty((2, 0, 3), np.float16).shape() == [2, 0, 3]


def test_between_runs_a_session_leaves_the_cores_to_others(graph: Path) -> None:
    session = open_session(graph, SessionSettings(threads=3))
    many = np.ones(1 << 18, np.float32)  # enough for all three threads
    idle_ms = []
    for _ in range(5):
        session.run({"x": many})
        started = time.process_time()  # of all threads; 10 ms of spinning, if they were let
        time.sleep(0.1)
        idle_ms.append(1000 * (time.process_time() - started))
    assert median(idle_ms) < 1


def test_shapes_that_were_seen_are_not_remembered(tmp_path: Path) -> None:
    if lacking := glibc.missing():
        pytest.skip(lacking)
    model = build(
        Growing(), Style("ort", "float32"), "growing", [Port("x", FLOAT32, ("n",))], [Port("y", FLOAT32, ("n",))]
    )
    ir.save(model, tmp_path / "growing.onnx")
    session = open_session(tmp_path / "growing.onnx", SessionSettings(threads=1))
    ones = np.ones(3000, np.float32)
    session.run({"x": ones})
    before = glibc.allocated().bytes
    for length in range(2000, 3000):
        session.run({"x": ones[:length]})
    assert glibc.allocated().bytes - before < 100_000  # a plan for each would take 1.8 MB


def test_an_unknown_device_is_refused_with_the_known_ones(graph: Path) -> None:
    device: Any = "tpu"
    with pytest.raises(DeviceError, match="no device 'tpu'; expected one of cpu, cuda, tensorrt-rtx"):
        open_session(graph, SessionSettings(device=device))


def test_a_damaged_graph_is_a_bundle_error(tmp_path: Path) -> None:
    path = tmp_path / "thinker.onnx"
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(
        BundleError, match=r"thinker\.onnx cannot be loaded by ONNX Runtime .*; export the bundle again"
    ):
        open_session(path, SessionSettings())


def test_cuda_without_its_package_says_what_to_install(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(
        DeviceError, match=r"'cuda' needs the package onnxruntime-gpu.* has CPUExecutionProvider"
    ) as error:
        open_session(graph, SessionSettings(device="cuda"))
    assert "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install" in str(error.value)


def test_a_cuda_provider_that_is_dropped_is_an_error_and_not_a_slow_session(
    graph: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime drops a provider whose libraries it cannot load and goes on with the CPU."""
    asked: list[Any] = []

    def session_on_the_cpu(*_: Any, providers: Any, enable_fallback: int) -> Any:
        asked.append((providers, enable_fallback))
        return SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: sys.stdout.write("Failed to load libcudnn.so.9\n"))
    monkeypatch.setattr(onnxruntime, "InferenceSession", session_on_the_cpu)
    with pytest.raises(DeviceError, match=r"could not start its CUDA provider .*Failed to load libcudnn\.so\.9"):
        open_session(graph, SessionSettings(device="cuda", gpu_memory_limit_bytes=2 << 30))
    assert capsys.readouterr().out == ""
    [(providers, enable_fallback)] = asked
    options = {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested", "gpu_mem_limit": str(2 << 30)}
    assert providers == [("CUDAExecutionProvider", options), "CPUExecutionProvider"]
    assert enable_fallback == 0


def test_tensorrt_rtx_without_its_package_says_what_to_install(graph: Path) -> None:
    expected = "needs the package onnxruntime-ep-nv-tensorrt-rtx, which is not installed here: pip install"
    with pytest.raises(DeviceError, match=expected):
        open_session(graph, SessionSettings(device="tensorrt-rtx"))


def test_tensorrt_rtx_that_cannot_be_loaded_or_finds_no_gpu(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = SimpleNamespace(get_ep_name=lambda: "RtxProvider", get_library_path=lambda: "nowhere.so")
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", plugin)
    device: Device = "tensorrt-rtx"
    with pytest.raises(DeviceError, match=r"could not be loaded: .*nowhere\.so.*update the NVIDIA driver"):
        open_session(graph, SessionSettings(device=device))
    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", lambda *_: None)
    with pytest.raises(DeviceError, match="finds no GPU it supports"):
        open_session(graph, SessionSettings(device=device))


def running_on(*providers: str) -> Any:
    """A session without a graph, which says it runs on `providers`."""
    return SimpleNamespace(get_inputs=list, get_outputs=list, get_providers=lambda: list(providers))


class RecordedOptions:
    """Session options that note the devices they are given and the settings of a session."""

    def __init__(self, devices: list[Any]) -> None:
        self.devices = devices
        self.entries: dict[str, str] = {}
        self.intra_op_num_threads = 0

    def add_provider_for_devices(self, devices: list[Any], options: dict[str, str]) -> None:
        assert options == {}
        self.devices.append(devices)

    def add_session_config_entry(self, name: str, value: str) -> None:
        self.entries[name] = value


def test_a_session_on_cuda_keeps_its_memory_there(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = running_on("CUDAExecutionProvider", "CPUExecutionProvider")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: session)
    opened = open_session(graph, SessionSettings(device="cuda"))
    assert opened.memory == Memory("cuda")
    assert opened.providers == ("CUDAExecutionProvider", "CPUExecutionProvider")


@pytest.mark.parametrize("kept", [True, False])
def test_a_session_on_tensorrt_rtx_keeps_its_memory_there_and_a_dropped_provider_is_an_error(
    graph: Path, monkeypatch: pytest.MonkeyPatch, *, kept: bool
) -> None:
    plugin = SimpleNamespace(get_ep_name=lambda: "RtxProvider")
    gpus = [SimpleNamespace(ep_name="RtxProvider", number=number) for number in range(2)]
    asked: list[Any] = []
    options = RecordedOptions(asked)
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", plugin)
    monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: [SimpleNamespace(ep_name="Other"), *gpus])
    monkeypatch.setattr(onnxruntime, "SessionOptions", lambda: options)
    session = running_on(*(["RtxProvider"] if kept else []), "CPUExecutionProvider")
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: session)
    settings = SessionSettings(device="tensorrt-rtx")
    if kept:
        assert open_session(graph, settings).memory == Memory("gpu", 0, 0x10DE)
    else:
        with pytest.raises(DeviceError, match=r"dropped its provider while loading doubling\.onnx"):
            open_session(graph, settings)
    assert asked == [gpus[:1]]


def test_threads_and_accuracy_level_reach_onnx_runtime(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def session(_: Path, options: RecordedOptions, **__: Any) -> Any:
        made.append((options.intra_op_num_threads, options.entries))
        return running_on("CPUExecutionProvider")

    monkeypatch.setattr(onnxruntime, "SessionOptions", lambda: RecordedOptions([]))
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    open_session(graph, SessionSettings(threads=3), accuracy_level=4)
    open_session(graph, SessionSettings())
    always = {"session.force_spinning_stop": "1"}
    assert made == [(3, always | {"session.qdq_matmulnbits_accuracy_level": "4"}), (0, always)]
