"""Opening and checking bundles: a whole one gives back what was written, and every damage is named."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bundles
import numpy as np
import numpy.typing as npt
import pytest
from nearfield.errors import BundleError, UnknownVoiceError
from nearfield.runtime.bundle import Bundle, record_of
from nearfield.runtime.manifest import SCHEMA_VERSION, FileRecord
from safetensors.numpy import save_file


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A bundle with nothing wrong."""
    bundles.write_bundle(tmp_path / "tiny")
    return tmp_path / "tiny"


def _change_manifest(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest_path = path / "manifest.json"
    values: dict[str, Any] = json.loads(manifest_path.read_text(encoding="utf-8"))
    change(values)
    manifest_path.write_text(json.dumps(values), encoding="utf-8")


def _replace(path: Path, name: str) -> None:
    """Accept the file `name` as it is now, as if it had been exported so."""
    record = record_of(path / name)
    _change_manifest(
        path, lambda values: values["files"][name].update(size_bytes=record.size_bytes, sha256=record.sha256)
    )


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# A whole bundle


def test_gives_back_what_was_written(whole: Path) -> None:
    bundle = Bundle.open(whole)
    np.testing.assert_array_equal(bundle.thinker_embedding(), bundles.THINKER_EMBEDDING)
    np.testing.assert_array_equal(bundle.talker_embedding(), bundles.TALKER_EMBEDDING)
    np.testing.assert_array_equal(bundle.dit_modulation(), bundles.MODULATION)
    voice = bundle.voice("Ethan")
    np.testing.assert_array_equal(voice.cond, np.full((1, 6), 1))
    np.testing.assert_array_equal(voice.encoding, [[2] * 4, [3] * 4])
    assert voice.bos_token_id == 2
    assert bundle.chat_template() == bundles.CHAT_TEMPLATE
    assert bundle.tokenizer_path.read_bytes() == b"{}"
    assert bundle.graph_path("dit").read_bytes() == b"graph of dit"
    assert bundle.manifest.model == "tiny"


def test_embedding_tables_are_mapped_and_not_read(whole: Path) -> None:
    bundle = Bundle.open(whole)
    assert isinstance(bundle.thinker_embedding(), np.memmap)
    assert isinstance(bundle.talker_embedding(), np.memmap)
    assert not isinstance(bundle.dit_modulation(), np.memmap)


def test_check_reports_every_byte(whole: Path) -> None:
    bundle, done = Bundle.open(whole), list[int]()
    bundle.check(done.append)
    files = [path for path in whole.iterdir() if path.name != "manifest.json"]
    assert sum(done) == bundle.total_bytes == sum(path.stat().st_size for path in files)


@pytest.mark.parametrize("size_bytes", [0, 1, 16 << 20, (16 << 20) + 1])
def test_a_record_covers_files_of_several_pieces(tmp_path: Path, size_bytes: int) -> None:
    path, done = tmp_path / "content", list[int]()
    content = bytes(range(256)) * (size_bytes // 256) + bytes(size_bytes % 256)
    path.write_bytes(content)
    assert record_of(path, done.append) == FileRecord(size_bytes, hashlib.sha256(content).hexdigest())
    assert sum(done) == size_bytes


# What is not a bundle


def test_a_path_that_is_not_there_is_explained(tmp_path: Path) -> None:
    message = f"{tmp_path / 'x'} is not a directory; expected a bundle: the directory that `nearfield export CHECKPOINT"
    with pytest.raises(BundleError, match=re.escape(message)):
        Bundle.open(tmp_path / "x")


def test_a_directory_without_a_manifest_is_explained(tmp_path: Path) -> None:
    with pytest.raises(
        BundleError, match=r"is a directory without manifest\.json; expected a bundle: .*nearfield export"
    ):
        Bundle.open(tmp_path)


def test_a_checkpoint_is_recognised(checkpoint_3b: Path) -> None:
    message = (
        f"{checkpoint_3b} is a checkpoint, not a bundle; make one of it: nearfield export {checkpoint_3b} -o BUNDLE"
    )
    with pytest.raises(BundleError, match=re.escape(message)):
        Bundle.open(checkpoint_3b)


# Damage


NAMES = sorted(
    ["thinker.onnx", "dit.data", "thinker_embedding.npy", "voices.safetensors", "tokenizer.json", "chat_template.jinja"]
)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_named(whole: Path, name: str) -> None:
    (whole / name).unlink()
    with pytest.raises(
        BundleError, match=re.escape(f"{whole / name} is missing; export the bundle again, or download")
    ):
        Bundle.open(whole)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_another_size_is_named(whole: Path, name: str) -> None:
    size_bytes = (whole / name).stat().st_size
    (whole / name).write_bytes((whole / name).read_bytes()[:-1])
    message = f"{whole / name} has {size_bytes - 1} bytes, the manifest says {size_bytes}; export the bundle again"
    with pytest.raises(BundleError, match=re.escape(message)):
        Bundle.open(whole)


@pytest.mark.parametrize("name", NAMES)
def test_a_changed_bit_is_found_at_once_in_a_small_file(whole: Path, name: str) -> None:
    _flip_a_bit(whole / name)
    with pytest.raises(BundleError, match=rf"{re.escape(str(whole / name))} is damaged: its SHA-256 is \w{{12}}…, the"):
        Bundle.open(whole)


def test_a_changed_bit_in_a_large_file_is_found_by_check(whole: Path) -> None:
    path = whole / "thinker.data"
    path.write_bytes(bytes(5 << 20))
    _replace(whole, "thinker.data")
    _flip_a_bit(path)
    bundle = Bundle.open(whole)  # reads no large file
    with pytest.raises(BundleError, match=rf"{re.escape(str(path))} is damaged: its SHA-256"):
        bundle.check()


def test_check_finds_what_happened_after_opening(whole: Path) -> None:
    bundle = Bundle.open(whole)
    (whole / "dit.data").unlink()
    with pytest.raises(BundleError, match=r"dit\.data is missing; export"):
        bundle.check()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"schema_version": "1"}', b"\xff"])
def test_a_manifest_that_is_none_is_refused(whole: Path, content: bytes) -> None:
    (whole / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest\.json is not a Nearfield manifest .*; export the bundle again"):
        Bundle.open(whole)


def test_a_newer_bundle_says_what_to_update(whole: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        values.clear()  # a newer schema may have nothing else in common
        values["schema_version"] = SCHEMA_VERSION + 1

    _change_manifest(whole, change)
    message = f"has schema version {SCHEMA_VERSION + 1}, this Nearfield reads up to {SCHEMA_VERSION}; update Nearfield"
    with pytest.raises(BundleError, match=re.escape(message)):
        Bundle.open(whole)


def test_an_older_bundle_is_to_be_exported_again(whole: Path) -> None:
    _change_manifest(whole, lambda values: values.update(schema_version=0))
    with pytest.raises(BundleError, match=f"has schema version 0, this Nearfield reads {SCHEMA_VERSION}; export the"):
        Bundle.open(whole)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda values: values.pop("thinker"), "missing required field `thinker`"),
        (
            lambda values: values["thinker"].update(vocab_size="4"),
            r"Expected `int`, got `str` - at `\$\.thinker\.vocab",
        ),
        (lambda values: values.update(surprise=1), "unknown field `surprise`"),
        (lambda values: values["components"].update(nose=None), "Invalid enum value 'nose'"),
    ],
)
def test_a_damaged_manifest_names_the_place(
    whole: Path, change: Callable[[dict[str, Any]], object], found: str
) -> None:
    _change_manifest(whole, change)
    with pytest.raises(BundleError, match=rf"manifest\.json is damaged: .*{found}.*; export the bundle again"):
        Bundle.open(whole)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda values: values["components"].pop("dit"), "lacks the components dit; export the bundle again"),
        (
            lambda values: values["files"].pop("dit.onnx"),
            r"does not list the file dit\.onnx, which its components need",
        ),
        (lambda values: values["files"].pop("tokenizer.json"), r"does not list the file tokenizer\.json"),
        (lambda values: values["talker"].update(embedding="x.npy"), r"does not list the file x\.npy"),
    ],
)
def test_a_manifest_must_list_what_is_needed(
    whole: Path, change: Callable[[dict[str, Any]], object], found: str
) -> None:
    _change_manifest(whole, change)
    with pytest.raises(BundleError, match=found):
        Bundle.open(whole)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", "", "a\\b", "C:x"])
def test_a_name_outside_the_bundle_is_refused(whole: Path, name: str) -> None:
    _change_manifest(whole, lambda values: values["files"].update({name: {"size_bytes": 0, "sha256": ""}}))
    with pytest.raises(BundleError, match=re.escape(f"lists the file {name!r}; expected names of files in the bundle")):
        Bundle.open(whole)


# Arrays


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.zeros((4, 2), np.float16), r"holds float16 \(4, 2\); the manifest says float16 \(4, 3\)"),
        (np.zeros((4, 3), np.float32), r"holds float32 \(4, 3\); the manifest says float16 \(4, 3\)"),
        (np.zeros(12, np.float16), r"holds float16 \(12,\); the manifest says float16 \(4, 3\)"),
    ],
)
def test_a_table_that_does_not_fit_the_manifest_is_refused(whole: Path, array: npt.NDArray[Any], found: str) -> None:
    np.save(whole / "thinker_embedding.npy", array)
    _replace(whole, "thinker_embedding.npy")
    with pytest.raises(BundleError, match=f"{found}: export the bundle again"):
        Bundle.open(whole).thinker_embedding()


def test_modulation_of_another_schedule_is_refused(whole: Path) -> None:
    np.save(whole / "dit_modulation.npy", bundles.MODULATION[:3])
    _replace(whole, "dit_modulation.npy")
    message = "holds float32 (3, 14, 1); the manifest says float32 (4, 'any', 'any')"
    with pytest.raises(BundleError, match=re.escape(message)):
        Bundle.open(whole).dit_modulation()


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00"])
def test_a_file_that_is_no_array_is_refused(whole: Path, content: bytes) -> None:
    (whole / "talker_embedding.npy").write_bytes(content)
    _replace(whole, "talker_embedding.npy")
    with pytest.raises(
        BundleError, match=r"talker_embedding\.npy cannot be read as an array \(.*\); export the bundle"
    ):
        Bundle.open(whole).talker_embedding()


def test_an_array_of_objects_is_never_unpickled(whole: Path) -> None:
    np.save(whole / "talker_embedding.npy", np.array([{}]), allow_pickle=True)
    _replace(whole, "talker_embedding.npy")
    with pytest.raises(BundleError, match="cannot be read as an array"):
        Bundle.open(whole).talker_embedding()


def test_an_unknown_voice_is_answered_with_the_known_ones(whole: Path) -> None:
    with pytest.raises(UnknownVoiceError, match=r"voice 'Nobody' is not in .*tiny; it has Ethan"):
        Bundle.open(whole).voice("Nobody")


@pytest.mark.parametrize("missing", list(bundles.VOICE))
def test_a_voice_without_an_array_is_refused(whole: Path, missing: str) -> None:
    save_file({name: array for name, array in bundles.VOICE.items() if name != missing}, whole / "voices.safetensors")
    _replace(whole, "voices.safetensors")
    with pytest.raises(BundleError, match=rf"voices\.safetensors does not hold the voice 'Ethan' \('{missing}'\)"):
        Bundle.open(whole).voice("Ethan")


def test_a_voice_of_other_shapes_is_refused(whole: Path) -> None:
    save_file({**bundles.VOICE, "Ethan.encoding": np.zeros((2, 4), np.float32)}, whole / "voices.safetensors")
    _replace(whole, "voices.safetensors")
    message = "voice 'Ethan' has shapes (1, 6), (2, 4) and (1, 4); expected one row each"
    with pytest.raises(BundleError, match=re.escape(message)):
        Bundle.open(whole).voice("Ethan")


def test_voices_that_are_no_safetensors_are_refused(whole: Path) -> None:
    (whole / "voices.safetensors").write_bytes(b"none")
    _replace(whole, "voices.safetensors")
    with pytest.raises(BundleError, match=r"voices\.safetensors does not hold the voice 'Ethan' \(.*\); export"):
        Bundle.open(whole).voice("Ethan")
