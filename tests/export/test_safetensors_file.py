"""The safetensors reader beside the library's writer, and on files damaged in every way a download can be."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nearfield.errors import CheckpointError
from nearfield.export.safetensors_file import SafetensorsFile
from safetensors.torch import save, save_file

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
_NAMES = st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__")
_SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """Tensors of the three float types, scalars and empty ones among them, of all bit patterns."""
    layout = draw(st.dictionaries(_NAMES, st.tuples(st.sampled_from(DTYPES), _SHAPES), max_size=5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    made: dict[str, torch.Tensor] = {}
    for name, (dtype, shape) in layout.items():
        size = torch.empty(shape, dtype=dtype).nbytes
        raw = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator)
        made[name] = raw.view(dtype).reshape(shape)
    return made


@given(tensors())
def test_reads_what_the_library_writes(tmp_path_factory: pytest.TempPathFactory, made: dict[str, torch.Tensor]) -> None:
    path = tmp_path_factory.mktemp("file") / "model.safetensors"
    save_file(made, path, metadata={"format": "pt"})
    file = SafetensorsFile(path)
    assert set(file.tensors) == set(made)
    for name, tensor in made.items():
        assert file.tensors[name].shape == tuple(tensor.shape)
        array = file.read(name)
        assert array.dtype == (np.float16 if tensor.dtype == torch.float16 else np.float32)
        expected = tensor.numpy() if tensor.dtype == torch.float16 else tensor.float().numpy()
        np.testing.assert_array_equal(array, expected)  # NaN equals NaN here
        assert array.shape == expected.shape
        assert array.flags.writeable


@given(rows=st.integers(1, 9), start=st.integers(0, 10), count=st.integers(0, 10), dtype=st.sampled_from(DTYPES))
def test_rows_are_those_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, rows: int, start: int, count: int, dtype: torch.dtype
) -> None:
    path = tmp_path_factory.mktemp("file") / "model.safetensors"
    tensor = torch.arange(rows * 6).reshape(rows, 3, 2).to(dtype)
    save_file({"before": torch.ones(5, dtype=dtype), "t": tensor, "zafter": torch.ones(2)}, path)
    file = SafetensorsFile(path)
    np.testing.assert_array_equal(file.read("t", start, start + count), tensor.float().numpy()[start : start + count])


def test_bfloat16_is_widened_without_loss(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    every = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    save_file({"every": every}, path)
    bits = SafetensorsFile(path).read("every").view(np.uint32)
    np.testing.assert_array_equal(bits, np.arange(2**16, dtype=np.uint32) << 16)


def test_nothing_stays_open(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(4)}, path)
    array = SafetensorsFile(path).read("a")
    path.unlink()
    np.testing.assert_array_equal(array, 1)


@pytest.mark.parametrize(
    ("dtype", "code"),
    [(torch.int8, "I8"), (torch.float64, "F64"), (torch.int32, "I32"), (torch.float8_e4m3fn, "F8_E4M3")],
)
def test_other_types_are_refused_when_read(tmp_path: Path, dtype: torch.dtype, code: str) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"layer.weight": torch.zeros(2, 3).to(dtype)}, path)
    file = SafetensorsFile(path)
    assert file.tensors["layer.weight"].shape == (2, 3)
    message = f"tensor layer.weight in {path} has dtype {code}; expected F32, F16 or BF16: use the full-precision"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        file.read("layer.weight")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=re.escape(f"{tmp_path / 'x.safetensors'} is missing; download")):
        SafetensorsFile(tmp_path / "x.safetensors")


def test_a_git_lfs_pointer_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"is a Git LFS pointer, not the weights.*git lfs pull"):
        SafetensorsFile(path)


_WHOLE = save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.bfloat16)})


@given(st.integers(0, len(_WHOLE) - 1))
def test_a_file_cut_anywhere_is_refused(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    path = tmp_path_factory.mktemp("file") / "model.safetensors"
    path.write_bytes(_WHOLE[:length])
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors is damaged or incomplete: .*; download the file again"
    ):
        SafetensorsFile(path)


def _with_header(change: Callable[[dict[str, Any]], object], data: bytes = b"\0" * 24) -> bytes:
    header: dict[str, Any] = {
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "b": {"dtype": "F32", "shape": [2, 2], "data_offsets": [8, 24]},
    }
    change(header)
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + data


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (_with_header(lambda header: header, b"\0" * 25), "its tensors end at byte 24 of the data, the file at 25"),
        (_with_header(lambda header: header.pop("a")), "tensor b lies at bytes 8 to 24 of the data; expected .* at 0"),
        (_with_header(lambda header: header["b"].update(data_offsets=[4, 20])), "tensor b lies at bytes 4 to 20"),
        (_with_header(lambda header: header["b"].update(data_offsets=[8, 4])), "tensor b lies at bytes 8 to 4"),
        (_with_header(lambda header: header["b"].update(data_offsets=[8, 999])), "tensor b of shape .* has 991 bytes"),
        (_with_header(lambda header: header["b"].update(shape=[2, 3])), r"shape \(2, 3\) and dtype F32 has 16 bytes"),
        (_with_header(lambda header: header["b"].update(shape=[-2, -2])), r"shape \(-2, -2\) and dtype F32"),
        (_with_header(lambda header: header["b"].update(shape="2")), "its header cannot be read"),
        (_with_header(lambda header: header["b"].pop("dtype")), "its header cannot be read"),
        (_with_header(lambda header: header.update(c=3)), "its header cannot be read"),
        ((10).to_bytes(8, "little") + b"not json  ", "its header cannot be read"),
        ((4).to_bytes(8, "little") + b"[[]]", "its header cannot be read"),
        ((4).to_bytes(8, "little") + b"\xff\xfe\xff\xfe", "its header cannot be read"),
        ((2**63).to_bytes(8, "little") + b"{}", "its header says 9223372036854775808 bytes, the file has 10"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(tmp_path: Path, content: bytes, found: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors is damaged or incomplete: .*{found}.*; download"):
        SafetensorsFile(path)


def test_a_file_that_shrinks_after_opening_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(_WHOLE)
    file = SafetensorsFile(path)
    path.write_bytes(_WHOLE[:-1])
    file.read("a")
    with pytest.raises(CheckpointError, match="is damaged or incomplete: ends inside tensor b"):
        file.read("b")
