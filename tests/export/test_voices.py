"""`spk_dict.pt` beside torch's own reader, and files made to run code, to read past their data, or simply broken."""

import io
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nearfield.errors import CheckpointError
from nearfield.export.voices import read_voices


def _voice(**changes: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    return {"cond": torch.randn(1, 24), "ref_mel": torch.randn(1, 7, 80), "bos_token": 151665, **changes}


def _save(path: Path, values: object) -> Path:
    torch.save(values, path)
    return path


def _rewritten(content: bytes, record: str, change: Callable[[bytes], bytes | None]) -> bytes:
    """A zip with one record changed, or dropped where the change is to None."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            kept = change(old.read(name)) if name.endswith(record) else old.read(name)
            if kept is not None:
                new.writestr(name, kept)
    return out.getvalue()


def _saved_bytes(values: object) -> bytes:
    out = io.BytesIO()
    torch.save(values, out)
    return out.getvalue()


# What torch writes


def test_reads_the_voices_of_a_checkpoint_as_torch_does(checkpoint_3b: Path) -> None:
    path = checkpoint_3b / "spk_dict.pt"
    expected = torch.load(path, weights_only=True)
    voices = read_voices(path)
    assert set(voices) == set(expected) == {"Chelsie", "Ethan"}
    for name, voice in voices.items():
        np.testing.assert_array_equal(voice.cond, expected[name]["cond"].numpy())
        np.testing.assert_array_equal(voice.ref_mel, expected[name]["ref_mel"].numpy())
        assert voice.bos_token_id == expected[name]["bos_token"]
        assert voice.cond.dtype == voice.ref_mel.dtype == np.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_reads_every_float_type(tmp_path: Path, dtype: torch.dtype) -> None:
    cond = torch.randn(1, 24).to(dtype)
    voice = read_voices(_save(tmp_path / "spk_dict.pt", {"Ethan": _voice(cond=cond)}))["Ethan"]
    np.testing.assert_array_equal(voice.cond, cond.float().numpy())


@pytest.mark.parametrize("bos_token", [7, torch.tensor(7), torch.tensor([7]), torch.tensor([[7]], dtype=torch.int32)])
def test_reads_the_token_as_a_number_or_a_tensor(tmp_path: Path, bos_token: object) -> None:
    assert read_voices(_save(tmp_path / "spk_dict.pt", {"E": _voice(bos_token=bos_token)}))["E"].bos_token_id == 7


def test_honours_offsets_and_strides(tmp_path: Path) -> None:
    storage = torch.arange(2 * 80 * 10.0)
    ref_mel = storage.as_strided((1, 6, 80), (999, 2, 20), 3)
    cond = storage[5:29].unsqueeze(0)
    voice = read_voices(_save(tmp_path / "spk_dict.pt", {"E": _voice(ref_mel=ref_mel, cond=cond)}))["E"]
    np.testing.assert_array_equal(voice.ref_mel, ref_mel.numpy())
    np.testing.assert_array_equal(voice.cond, cond.numpy())


def test_honours_the_byte_order(tmp_path: Path) -> None:
    voice = _voice()
    swapped = _voice(cond=torch.from_numpy(voice["cond"].numpy().byteswap()), ref_mel=voice["ref_mel"])
    content = _rewritten(_saved_bytes({"E": swapped}), "byteorder", lambda _: b"big")
    content = _rewritten(content, "data/1", lambda data: np.frombuffer(data, "<f4").astype(">f4").tobytes())
    path = tmp_path / "spk_dict.pt"
    path.write_bytes(content)
    read = read_voices(path)["E"]
    np.testing.assert_array_equal(read.cond, voice["cond"].numpy())
    np.testing.assert_array_equal(read.ref_mel, voice["ref_mel"].numpy())


def test_reads_files_without_a_byte_order(tmp_path: Path) -> None:
    path = tmp_path / "spk_dict.pt"
    path.write_bytes(_rewritten(_saved_bytes({"E": _voice()}), "byteorder", lambda _: None))
    np.testing.assert_array_equal(read_voices(path)["E"].cond, _voice()["cond"].numpy())


# What runs code


class _Runs:
    """Pickled, this calls a function with an argument when it is read."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("place", ["root", "voice", "bos_token"])
def test_a_pickle_that_runs_a_command_runs_nothing(tmp_path: Path, protocol: int, place: str) -> None:
    proof = tmp_path / "it-ran"
    attack = _Runs(os.mkdir, str(proof))
    values: object = {"root": attack, "voice": {"E": attack}, "bos_token": {"E": {"bos_token": attack}}}[place]
    pickled = pickle.dumps(values, protocol)
    path = tmp_path / "spk_dict.pt"
    path.write_bytes(_rewritten(_saved_bytes({"E": _voice()}), "data.pkl", lambda _: pickled))
    with pytest.raises(
        CheckpointError, match=rf"{re.escape(str(path))} refers to \w+\.mkdir, .* nothing of it was run"
    ):
        read_voices(path)
    assert not proof.exists()
    pickle.loads(pickled)  # the attack is a real one
    assert proof.is_dir()


@pytest.mark.parametrize(
    "harmful",
    [_Runs(os.system, "exit"), _Runs(eval, "1"), _Runs(getattr, "a", "b"), _Runs(OrderedDict.fromkeys, "ab"), set],
)
def test_every_other_name_is_refused(tmp_path: Path, harmful: object) -> None:
    path = tmp_path / "spk_dict.pt"
    path.write_bytes(
        _rewritten(_saved_bytes({"E": _voice()}), "data.pkl", lambda _: pickle.dumps({"E": harmful}, protocol=2))
    )
    with pytest.raises(CheckpointError, match=r"refers to \w+\.\w+, which a file of voices has no use for"):
        read_voices(path)


def test_a_whole_module_saved_with_torch_is_refused(tmp_path: Path) -> None:
    path = _save(tmp_path / "spk_dict.pt", torch.nn.Linear(2, 2))
    with pytest.raises(CheckpointError, match=r"refers to torch\.nn\.modules\.linear\.Linear"):
        read_voices(path)


@pytest.mark.parametrize(
    ("size", "stride"),
    [
        ((80,), (2,)),  # past the end
        ((1_000_000_000, 80), (0, 1)),  # terabytes of repetitions
        ((80,), (-1,)),
        ((81,), (1,)),
        ((-1, -80), (1, 1)),
        ((80, 1), (1,)),
    ],
)
def test_a_view_outside_its_data_is_refused(tmp_path: Path, size: tuple[int, ...], stride: tuple[int, ...]) -> None:
    rebuilt = _Runs(torch._utils._rebuild_tensor_v2, torch.zeros(80).untyped_storage(), 0, size, stride, False, {})
    content = _saved_bytes({"E": _voice(cond=torch.zeros(80))})
    pickled = _pickle_with_storage({"E": {"cond": rebuilt}})
    path = tmp_path / "spk_dict.pt"
    path.write_bytes(_rewritten(content, "data.pkl", lambda _: pickled))
    with pytest.raises(CheckpointError, match=r"is damaged: .*; download the file again"):
        read_voices(path)


def _pickle_with_storage(values: object) -> bytes:
    """Pickle with every storage pointing to the 80 floats of `data/0`."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object, /) -> object:
            is_storage = isinstance(value, torch.UntypedStorage)
            return ("storage", torch.FloatStorage, "0", "cpu", 80) if is_storage else None

    out = io.BytesIO()
    Pickler(out, protocol=2).dump(values)
    return out.getvalue()


# What is broken


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"spk_dict\.pt is missing; it holds the checkpoint's voices: download"):
        read_voices(tmp_path / "spk_dict.pt")


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: float) -> None:
    path = _save(tmp_path / "spk_dict.pt", {"E": _voice()})
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(CheckpointError, match=r"spk_dict\.pt is truncated or damaged; download the file again"):
        read_voices(path)


def test_a_flipped_bit_in_the_data_is_found(tmp_path: Path) -> None:
    path = _save(tmp_path / "spk_dict.pt", {"E": _voice()})
    content = bytearray(path.read_bytes())
    content[content.index(_voice()["cond"].numpy().tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is truncated or damaged; download the file again"):
        read_voices(path)


def test_the_old_format_of_torch_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "spk_dict.pt"
    torch.save({"E": _voice()}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"is a bare pickle, as torch wrote them before 1\.6; expected the zip"):
        read_voices(path)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (b"<html>", "is not a file of torch.save"),
        (b"", "is not a file of torch.save"),
    ],
)
def test_what_is_no_torch_file_is_refused(tmp_path: Path, content: bytes, found: str) -> None:
    path = tmp_path / "spk_dict.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{found}.*; download the file again"):
        read_voices(path)


def test_a_zip_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "spk_dict.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(CheckpointError, match=r"is a zip without one data\.pkl"):
        read_voices(path)


@pytest.mark.parametrize(
    ("record", "change"),
    [
        ("data.pkl", lambda data: data[:-5]),
        ("data.pkl", lambda _: b""),
        ("data.pkl", lambda _: b"\x80\x02}r\xff\xff\xff\x7f."),  # a memory of two thousand million entries
        ("data/0", lambda data: data[:-4]),
        ("data/0", lambda data: data[:-1]),
        ("data/1", lambda _: None),
    ],
)
def test_a_damaged_record_is_refused(tmp_path: Path, record: str, change: Callable[[bytes], bytes | None]) -> None:
    path = tmp_path / "spk_dict.pt"
    path.write_bytes(_rewritten(_saved_bytes({"E": _voice()}), record, change))
    with pytest.raises(CheckpointError, match=r"spk_dict\.pt is damaged: .*; download the file again"):
        read_voices(path)


@given(st.data())
def test_any_other_byte_in_the_pickle_gives_voices_or_a_checkpoint_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    def change(pickled: bytes) -> bytes:
        changed = bytearray(pickled)
        for _ in range(data.draw(st.integers(1, 3))):
            changed[data.draw(st.integers(0, len(pickled) - 1))] = data.draw(st.integers(0, 255))
        return bytes(changed)

    path = tmp_path_factory.mktemp("voices") / "spk_dict.pt"
    path.write_bytes(_rewritten(_saved_bytes({"E": _voice()}), "data.pkl", change))
    try:
        voices = read_voices(path)
    except CheckpointError as error:
        assert str(path) in str(error)
    else:
        assert all(voice.cond.shape[0] == 1 for voice in voices.values())


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([1], "holds no dictionary of voices by name"),
        ({}, "holds no dictionary of voices by name"),
        ({3: _voice()}, "holds no dictionary of voices by name"),
        ({"E": [1]}, "voice 'E' in .* is list; expected cond, ref_mel and bos_token"),
        ({"E": {}}, "voice 'E' in .*: cond is missing or no tensor of floats"),
        ({"E": _voice(cond=torch.ones(1, 24, dtype=torch.int64))}, "cond is missing or no tensor of floats"),
        ({"E": _voice(cond=torch.ones(24))}, r"cond has shape \(24,\); expected \(1, width\)"),
        ({"E": _voice(ref_mel=torch.ones(1, 7, 81))}, r"ref_mel has shape \(1, 7, 81\); expected \(1, frames, 80\)"),
        ({"E": _voice(ref_mel=torch.ones(1, 0, 80))}, r"ref_mel has shape \(1, 0, 80\); expected \(1, frames, 80\)"),
        ({"E": _voice(ref_mel=torch.full((1, 7, 80), torch.nan))}, "ref_mel holds NaN or infinity"),
        ({"E": _voice(bos_token=None)}, "bos_token is None; expected the id of a token"),
        ({"E": _voice(bos_token=True)}, "bos_token is True; expected the id of a token"),
        ({"E": _voice(bos_token=-1)}, "bos_token is -1; expected the id of a token"),
        ({"E": _voice(bos_token=0.5)}, r"bos_token is 0\.5; expected the id of a token"),
        ({"E": _voice(bos_token=torch.tensor([1, 2]))}, "bos_token is .*; expected the id of a token"),
    ],
)
def test_a_voice_that_lacks_something_is_named(tmp_path: Path, values: object, found: str) -> None:
    path = _save(tmp_path / "spk_dict.pt", values)
    with pytest.raises(CheckpointError, match=found):
        read_voices(path)


def test_a_compressed_file_is_refused_before_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "spk_dict.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("spk_dict/data.pkl", b"\0" * 1_000_000)
    with pytest.raises(CheckpointError, match=r"data\.pkl is compressed, torch\.save stores"):
        read_voices(path)
