"""Writing bundles: whole or not there, whatever happens on the way; an old one is replaced only by a whole one."""

import errno
import logging
import os
import re
import shutil
from pathlib import Path

import bundles
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nearfield.errors import BundleError
from nearfield.export.bundle_writer import BundleWriter
from nearfield.runtime.bundle import Bundle, record_of
from nearfield.runtime.manifest import FileRecord

DEAD = ".tiny.partial-999999999-0123abcd"  # no system numbers processes so high


def _names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def _leave_behind(path: Path) -> Path:
    """A directory with a file in it."""
    path.mkdir()
    (path / "thinker.data").write_bytes(b"half")
    return path


def test_a_finished_bundle_is_whole_and_alone(tmp_path: Path) -> None:
    manifest = bundles.write_bundle(tmp_path / "tiny")
    assert _names(tmp_path) == ["tiny"]
    bundle = Bundle.open(tmp_path / "tiny")
    bundle.check()
    assert bundle.manifest == manifest
    assert set(manifest.files) == set(_names(tmp_path / "tiny")) - {"manifest.json"}


def test_nothing_is_at_the_target_before_the_end(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "tiny") as writer:
        bundles.fill(writer)
        assert not (tmp_path / "tiny").exists()
        assert re.fullmatch(rf"\.tiny\.partial-{os.getpid()}-[0-9a-f]{{8}}", writer.directory.name)
        assert writer.directory.parent == tmp_path
        writer.finish(bundles.make_manifest)
        assert (tmp_path / "tiny").is_dir()


def test_a_relative_target_is_where_the_export_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with BundleWriter(Path("tiny")) as writer:
        bundles.fill(writer)
        monkeypatch.chdir(tmp_path / "elsewhere")
        writer.finish(bundles.make_manifest)
    Bundle.open(tmp_path / "tiny")


# Leaving early


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), BundleError("x")])
def test_an_exception_leaves_nothing_and_goes_on(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)) as raised, BundleWriter(tmp_path / "tiny") as writer:
        bundles.fill(writer)
        raise error
    assert raised.value is error
    assert _names(tmp_path) == []


def test_leaving_without_finishing_leaves_nothing(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "tiny") as writer:
        bundles.fill(writer)
    assert _names(tmp_path) == []


def test_an_exception_leaves_the_old_bundle(tmp_path: Path) -> None:
    bundles.write_bundle(tmp_path / "tiny", model="old")
    with pytest.raises(ValueError, match="half-way"), BundleWriter(tmp_path / "tiny", overwrite=True) as writer:
        bundles.fill(writer)
        raise ValueError("half-way")
    assert _names(tmp_path) == ["tiny"]
    assert Bundle.open(tmp_path / "tiny").manifest.model == "old"


def test_a_manifest_of_files_that_are_not_there_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(BundleError, match=r"the manifest of .*tiny does not list the file dit\.onnx"),
        BundleWriter(tmp_path / "tiny") as writer,
    ):
        bundles.fill(writer)
        writer.path_of("dit.onnx").unlink()
        writer.finish(bundles.make_manifest)
    assert _names(tmp_path) == []


# The target


def test_an_existing_bundle_is_not_overwritten_unasked(tmp_path: Path) -> None:
    bundles.write_bundle(tmp_path / "tiny", model="old")
    message = f"{tmp_path / 'tiny'} is already there; choose another name, or replace it with --overwrite"
    with pytest.raises(BundleError, match=re.escape(message)):
        bundles.write_bundle(tmp_path / "tiny")
    assert Bundle.open(tmp_path / "tiny").manifest.model == "old"
    assert _names(tmp_path) == ["tiny"]


def test_an_existing_bundle_is_overwritten_when_asked(tmp_path: Path) -> None:
    bundles.write_bundle(tmp_path / "tiny", model="old")
    bundles.write_bundle(tmp_path / "tiny", overwrite=True, model="new")
    assert Bundle.open(tmp_path / "tiny").manifest.model == "new"
    assert _names(tmp_path) == ["tiny"]


def test_a_damaged_bundle_is_overwritten_when_asked(tmp_path: Path) -> None:
    bundles.write_bundle(tmp_path / "tiny", model="old")
    (tmp_path / "tiny" / "thinker.data").unlink()
    bundles.write_bundle(tmp_path / "tiny", overwrite=True, model="new")
    assert Bundle.open(tmp_path / "tiny").manifest.model == "new"


def test_a_bundle_that_holds_something_else_too_is_not_overwritten(tmp_path: Path) -> None:
    bundles.write_bundle(tmp_path / "tiny", model="old")
    (tmp_path / "tiny" / "notes.txt").write_text("precious", encoding="utf-8")
    with pytest.raises(BundleError, match=r"also holds notes\.txt; move them away before it is replaced"):
        bundles.write_bundle(tmp_path / "tiny", overwrite=True, model="new")
    assert (tmp_path / "tiny" / "notes.txt").read_text(encoding="utf-8") == "precious"
    assert _names(tmp_path) == ["tiny"]


def test_another_programs_manifest_is_not_a_bundles(tmp_path: Path) -> None:
    target = tmp_path / "extension"
    target.mkdir()
    (target / "manifest.json").write_text('{"manifest_version": 3, "files": []}', encoding="utf-8")
    with pytest.raises(BundleError, match="extension is no bundle and will not be overwritten"):
        bundles.write_bundle(target, overwrite=True)
    assert _names(target) == ["manifest.json"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="missing is not there; make it first"):
        bundles.write_bundle(tmp_path / "missing" / "tiny")
    assert _names(tmp_path) == []


def test_an_empty_directory_may_be_the_target(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    bundles.write_bundle(tmp_path / "tiny")
    Bundle.open(tmp_path / "tiny")
    assert _names(tmp_path) == ["tiny"]


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_what_is_no_bundle_is_never_overwritten(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "thesis"
    if kind == "directory":
        target.mkdir()
        (target / "chapter-1.txt").write_text("precious", encoding="utf-8")
    else:
        target.write_text("precious", encoding="utf-8")
    message = f"{target} is no bundle and will not be overwritten; choose another name"
    with pytest.raises(BundleError, match=re.escape(message)):
        bundles.write_bundle(target, overwrite=True)
    assert (target / "chapter-1.txt" if kind == "directory" else target).read_text(encoding="utf-8") == "precious"
    assert _names(tmp_path) == ["thesis"]


def test_a_target_that_appeared_meanwhile_is_kept(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is already there"), BundleWriter(tmp_path / "tiny") as writer:
        bundles.fill(writer)
        (tmp_path / "tiny").mkdir()
        (tmp_path / "tiny" / "other").write_bytes(b"")
        writer.finish(bundles.make_manifest)
    assert _names(tmp_path) == ["tiny"]
    assert _names(tmp_path / "tiny") == ["other"]


def test_the_old_bundle_comes_back_when_the_new_one_cannot_be_put_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundles.write_bundle(tmp_path / "tiny", model="old")
    rename = Path.rename

    def rename_but_not_the_partial(self: Path, target: Path) -> Path:
        if ".partial-" in self.name:
            raise PermissionError(errno.EACCES, "a file is open in another program")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", rename_but_not_the_partial)
    with pytest.raises(BundleError, match=r"tiny could not be put in place .*; close programs that use it and export"):
        bundles.write_bundle(tmp_path / "tiny", overwrite=True, model="new")
    assert Bundle.open(tmp_path / "tiny").manifest.model == "old"
    assert _names(tmp_path) == ["tiny"]


# What a killed export left


def test_a_dead_processs_partial_is_removed(tmp_path: Path) -> None:
    _leave_behind(tmp_path / DEAD)
    bundles.write_bundle(tmp_path / "tiny")
    assert _names(tmp_path) == ["tiny"]


def test_a_living_processs_partial_is_left_alone_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    partial = _leave_behind(tmp_path / f".tiny.partial-{os.getppid()}-0123abcd")
    with caplog.at_level(logging.WARNING):
        bundles.write_bundle(tmp_path / "tiny")
    assert _names(tmp_path) == [partial.name, "tiny"]
    assert f"{partial}: process {os.getppid()} is writing this bundle too; left alone" in caplog.messages


def test_partials_of_other_bundles_are_left_alone(tmp_path: Path) -> None:
    others = [".tiny2.partial-999999999-0123abcd", ".not-tiny.partial-999999999-0123abcd", "tiny.partial-9-0123abcd"]
    for other in others:
        _leave_behind(tmp_path / other)
    bundles.write_bundle(tmp_path / "tiny")
    assert _names(tmp_path) == sorted([*others, "tiny"])


def test_a_name_with_wildcards_stands_for_itself(tmp_path: Path) -> None:
    _leave_behind(tmp_path / DEAD)
    _leave_behind(tmp_path / ".[t]iny.partial-999999999-0123abcd")
    bundles.write_bundle(tmp_path / "[t]iny")
    assert _names(tmp_path) == [DEAD, "[t]iny"]


def test_an_old_bundle_set_aside_is_removed_once_the_new_one_is_there(tmp_path: Path) -> None:
    bundles.write_bundle(tmp_path / "tiny", model="new")
    bundles.write_bundle(tmp_path / ".tiny.old-0123abcd", model="old")
    bundles.write_bundle(tmp_path / "tiny", overwrite=True, model="newer")
    assert _names(tmp_path) == ["tiny"]
    assert Bundle.open(tmp_path / "tiny").manifest.model == "newer"


def test_an_old_bundle_set_aside_comes_back_if_nothing_took_its_place(tmp_path: Path) -> None:
    bundles.write_bundle(tmp_path / ".tiny.old-0123abcd", model="old")
    with pytest.raises(BundleError, match="is already there"):
        bundles.write_bundle(tmp_path / "tiny")
    assert Bundle.open(tmp_path / "tiny").manifest.model == "old"
    assert _names(tmp_path) == ["tiny"]


# Room


def test_too_small_a_disk_is_said_before_anything_is_written(tmp_path: Path) -> None:
    free_bytes = shutil.disk_usage(tmp_path).free
    needed = free_bytes + 10**15
    with (
        pytest.raises(BundleError, match=rf"tiny needs about {needed / 1e9:.1f} GB, its disk has [\d.]+ GB free; make"),
        BundleWriter(tmp_path / "tiny", needed_bytes=needed),
    ):
        pass
    assert _names(tmp_path) == []


def test_a_full_disk_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(BundleError, match=r"the disk of .*tiny is full: 0\.0 GB were written and more are needed, "),
        BundleWriter(tmp_path / "tiny") as writer,
    ):
        bundles.fill(writer)
        raise OSError(errno.ENOSPC, "No space left on device")
    assert _names(tmp_path) == []


def test_another_error_of_the_system_is_not_called_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), BundleWriter(tmp_path / "tiny"):
        raise PermissionError(errno.EACCES, "no")


# Records


def test_files_hashed_on_the_way_are_not_read_again(tmp_path: Path) -> None:
    record = FileRecord(size_bytes=15, sha256="as-told")
    with BundleWriter(tmp_path / "tiny") as writer:
        bundles.fill(writer)
        assert writer.path_of("dit.data").stat().st_size == record.size_bytes - 1
        writer.path_of("dit.data").write_bytes(bytes(15))
        writer.add({"dit.data": record})
        files = writer.finish(bundles.make_manifest).files
    assert files["dit.data"] == record
    assert files["dit.onnx"] == record_of(tmp_path / "tiny" / "dit.onnx")


def test_a_file_that_changed_after_it_was_hashed_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(BundleError, match=r"dit\.data has 14 bytes after 15 were written; .*: export again"),
        BundleWriter(tmp_path / "tiny") as writer,
    ):
        bundles.fill(writer)
        writer.add({"dit.data": FileRecord(size_bytes=15, sha256="")})
        writer.finish(bundles.make_manifest)
    assert _names(tmp_path) == []


# Arrays in blocks


@given(
    rows=st.integers(0, 7),
    trailing=st.lists(st.integers(0, 3), max_size=2),
    rows_at_once=st.integers(1, 4),
    dtype=st.sampled_from(["float16", "float32", "int8"]),
)
def test_an_array_written_in_blocks_is_the_array(
    tmp_path_factory: pytest.TempPathFactory, rows: int, trailing: list[int], rows_at_once: int, dtype: str
) -> None:
    array = np.random.default_rng(0).integers(0, 99, (rows, *trailing)).astype(np.float32)
    parent = tmp_path_factory.mktemp("bundle")
    with BundleWriter(parent / "tiny") as writer:
        bundles.fill(writer)
        blocks = (array[start : start + rows_at_once] for start in range(0, rows, rows_at_once))
        writer.write_array("extra.npy", array.shape, dtype, blocks)
        files = writer.finish(bundles.make_manifest).files
    path = parent / "tiny" / "extra.npy"
    written = np.load(path)
    assert written.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(written, array)
    assert files["extra.npy"] == record_of(path)


@pytest.mark.parametrize(
    ("blocks", "found"),
    [
        ([np.zeros((2, 3))], r"extra\.npy: 2 rows in an array of shape \(4, 3\)"),
        ([np.zeros((4, 3)), np.zeros((1, 3))], r"extra\.npy: 5 rows in an array of shape \(4, 3\)"),
        ([np.zeros((4, 2))], r"extra\.npy: a block of shape \(4, 2\) in an array of shape \(4, 3\)"),
    ],
)
def test_blocks_that_do_not_add_up_are_refused(
    tmp_path: Path, blocks: list[npt.NDArray[np.float64]], found: str
) -> None:
    with pytest.raises(ValueError, match=found), BundleWriter(tmp_path / "tiny") as writer:
        writer.write_array("extra.npy", (4, 3), np.float32, blocks)
    assert _names(tmp_path) == []
