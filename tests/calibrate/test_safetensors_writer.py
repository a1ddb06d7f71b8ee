"""What is written is what the format's own library and Nearfield's reader read."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nearfield.calibrate.safetensors_writer import Tensor, rounded, to_bfloat16, write_safetensors
from nearfield.export.safetensors_file import SafetensorsFile
from safetensors.numpy import load_file

FLOATS = st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20)


@given(values=FLOATS)
def test_bfloat16_is_rounded_as_torch_rounds(values: list[float]) -> None:
    array = np.array(values, np.float32)
    expected = torch.from_numpy(array).bfloat16()
    np.testing.assert_array_equal(to_bfloat16(array), expected.view(torch.uint16).numpy())
    np.testing.assert_array_equal(rounded(array, "BF16"), expected.float().numpy())


def test_a_file_reads_back_in_the_library_and_here(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    floats, codes = rng.normal(size=(3, 5)).astype(np.float32), rng.integers(-9, 9, (4, 2)).astype(np.int32)
    path = tmp_path / "some.safetensors"
    tensors = {"a": Tensor.of(floats), "half": Tensor.of(floats, "F16"), "b": Tensor.of(codes)}
    assert write_safetensors(path, tensors) == 60 + 30 + 32
    found = load_file(path)
    np.testing.assert_array_equal(found["a"], floats)
    np.testing.assert_array_equal(found["half"], floats.astype(np.float16))
    np.testing.assert_array_equal(found["b"], codes)
    file = SafetensorsFile(path)
    assert list(file.tensors) == ["a", "half", "b"]
    np.testing.assert_array_equal(file.read("a"), floats)
    assert b"".join(file.raw("b")) == codes.tobytes()
    assert [it.name for it in tmp_path.iterdir()] == ["some.safetensors"]


def test_a_failed_write_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    write_safetensors(path, {"a": Tensor.of(np.zeros(3, np.float32))})
    before = path.read_bytes()

    def broken() -> "list[bytes]":
        raise OSError("no space left")

    class Content:
        def __iter__(self) -> "object":
            return iter(broken())

    with pytest.raises(OSError, match="no space"):
        write_safetensors(path, {"a": Tensor("F32", (3,), Content())})  # type: ignore[arg-type]
    assert path.read_bytes() == before
