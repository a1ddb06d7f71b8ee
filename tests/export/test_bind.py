"""Binding is strict both ways, and what is written is what was read."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from graphs import Array
from nearfield.errors import ExportError
from nearfield.export import bind
from nearfield.export.bind import Reader, write_component
from nearfield.export.graph import ComponentGraph, Module, Op, Parameter, Port, Style, Value, build
from nearfield.export.layers import Linear, OutputHead
from nearfield.quantize.packing import QuantizedWeight

STYLE = Style("ort", "float32")


class Arrays:
    """A checkpoint in memory."""

    def __init__(self, tensors: dict[str, Array]) -> None:
        self.tensors = tensors

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def read(self, name: str) -> Array:
        return self.tensors[name]

    def rows(self, name: str, rows_at_once: int) -> Iterator[tuple[int, Array]]:
        for start in range(0, len(self.tensors[name]), rows_at_once):
            yield start, self.tensors[name][start : start + rows_at_once]

    def quantized(self, name: str) -> QuantizedWeight:
        raise AssertionError(f"{name} is not stored quantized")


class Pair(Module):
    """A Linear and a head, of the sizes of `tensors()`."""

    def __init__(self, outputs: int = 4) -> None:
        super().__init__()
        self.proj = Linear(3, 5, STYLE)
        self.head = OutputHead(5, outputs, STYLE)

    def forward(self, op: Op, x: Value) -> list[Value]:
        return [self.head(op, self.proj(op, x))]


def pair(outputs: int = 4) -> ComponentGraph:
    root = Pair(outputs)
    model = build(root, STYLE, "pair", [Port("x", STYLE.dtype, (1, 3))], [Port("y", STYLE.dtype, (1, outputs))])
    return ComponentGraph("vocoder", model, root, "part.")


def tensors(outputs: int = 4) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    shapes = {"part.proj.weight": (5, 3), "part.proj.bias": (5,), "part.head.weight": (outputs, 5)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def test_the_written_graph_computes_with_the_checkpoints_weights(tmp_path: Path) -> None:
    weights = tensors()
    written = write_component(pair(), Reader(Arrays(weights)), tmp_path)
    x = np.array([[1.0, -2.0, 0.5]], np.float32)
    (y,) = ort.InferenceSession(str(tmp_path / written.graph)).run(None, {"x": x})
    hidden = x @ weights["part.proj.weight"].T + weights["part.proj.bias"]
    np.testing.assert_allclose(y, hidden @ weights["part.head.weight"].T, rtol=1e-5)
    assert written.parameters == 5 * 3 + 5 + 4 * 5


def test_files_are_recorded_as_they_are_and_tensors_are_aligned(tmp_path: Path) -> None:
    written = write_component(pair(), Reader(Arrays(tensors())), tmp_path)
    assert set(written.files) == {"vocoder.onnx", "vocoder.data"}
    for name, record in written.files.items():
        content = (tmp_path / name).read_bytes()
        assert (record.size_bytes, record.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    model = onnx.load(tmp_path / written.graph, load_external_data=False)
    offsets = _offsets(model)
    assert len(offsets) == 3
    assert all(offset % 64 == 0 for offset in offsets)  # these tensors are small; those of a page begin on one


def test_tensors_written_in_chunks_are_whole_and_hashed_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bind, "_CHUNK_BYTES", 7)  # divides none of the tensors' sizes
    weights = tensors()
    written = write_component(pair(), Reader(Arrays(weights)), tmp_path)
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(tmp_path / written.graph).graph.initializer}
    np.testing.assert_array_equal(stored["proj.weight"], weights["part.proj.weight"].T)
    np.testing.assert_array_equal(stored["proj.bias"], weights["part.proj.bias"])
    np.testing.assert_array_equal(stored["head.weight"], weights["part.head.weight"])
    content, record = (tmp_path / written.data).read_bytes(), written.files[written.data]
    assert (record.size_bytes, record.sha256) == (len(content), hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize(("outputs", "offset"), [(205, 4096), (204, 128)])  # 4100 and 4080 bytes of float32
def test_a_tensor_of_a_page_begins_on_one(tmp_path: Path, outputs: int, offset: int) -> None:
    written = write_component(pair(outputs), Reader(Arrays(tensors(outputs))), tmp_path)
    model = onnx.load(tmp_path / written.graph, load_external_data=False)
    assert sorted(_offsets(model)) == [0, 64, offset]


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for directory in (first, second):
        directory.mkdir()
        write_component(pair(), Reader(Arrays(tensors())), directory)
    for name in ("vocoder.onnx", "vocoder.data"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    weights = tensors()
    del weights["part.proj.bias"]
    with pytest.raises(ExportError, match=r"has no tensor 'part\.proj\.bias'; it is incomplete: download it again"):
        write_component(pair(), Reader(Arrays(weights)), tmp_path)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    weights = tensors() | {"part.head.weight": np.zeros((4, 6), np.float32)}
    with pytest.raises(ExportError, match=r"'part\.head\.weight' has shape \(4, 6\), its config.json says \(4, 5\)"):
        write_component(pair(), Reader(Arrays(weights)), tmp_path)


def test_a_tensor_nobody_uses_is_an_error_unless_it_is_known(tmp_path: Path) -> None:
    reader = Reader(Arrays(tensors() | {"part.extra": np.zeros(1, np.float32)}))
    write_component(pair(), reader, tmp_path)
    with pytest.raises(ExportError, match=r"no graph has a place for: part\.extra;"):
        reader.check_all_taken([])
    reader.check_all_taken(["part.extra"])


def test_an_initializer_nobody_fills_is_an_error(tmp_path: Path) -> None:
    class Forgetful(Pair):
        """Uses a parameter it does not bind."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = Parameter((4,), STYLE.dtype)

        def forward(self, op: Op, x: Value) -> list[Value]:
            return [op.Mul(super().forward(op, x)[0], self.scale)]

        def bind_own(self, prefix: str, source: object) -> Iterator[tuple[Parameter, Array]]:
            return iter(())

    root = Forgetful()
    model = build(root, STYLE, "pair", [Port("x", STYLE.dtype, (1, 3))], [Port("y", STYLE.dtype, (1, 4))])
    with pytest.raises(ExportError, match="no checkpoint tensor fills scale; this is a bug in Nearfield"):
        write_component(ComponentGraph("vocoder", model, root, "part."), Reader(Arrays(tensors())), tmp_path)


def test_progress_counts_every_weight_once() -> None:
    seen: list[tuple[str, int, int]] = []
    reader = Reader(Arrays(tensors()), lambda component, done, total: seen.append((component, done, total)))
    reader.component = "thinker"
    for _ in range(2):
        reader.read("part.proj.bias", (5,))
        list(reader.rows("part.head.weight", (4, 5), 3))
    reader.component = "talker"
    reader.read("part.proj.weight", (5, 3))
    assert seen == [("thinker", 5, 40), ("thinker", 25, 40), ("talker", 40, 40)]
    assert reader.counts == {"thinker": 25, "talker": 15}


def _offsets(model: onnx.ModelProto) -> list[int]:
    """Where each tensor lies in the data file."""
    return [int(e.value) for t in model.graph.initializer for e in t.external_data if e.key == "offset"]
