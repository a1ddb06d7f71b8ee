"""Files appear whole or not at all, links are followed, and what is no file is left alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from nearfield.runtime.files import check_writable, write_bytes_atomically


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_file_is_made_and_replaced(tmp_path: Path) -> None:
    for content in (b"first", b"second"):
        write_bytes_atomically(tmp_path / "a", content)
        assert contents(tmp_path) == {"a": content}


def test_a_name_as_long_as_names_can_be(tmp_path: Path) -> None:
    name = "n" * 255
    write_bytes_atomically(tmp_path / name, b"x")
    assert contents(tmp_path) == {name: b"x"}


def test_a_link_stays_one_and_what_it_points_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"old")
    try:
        (tmp_path / "link").symlink_to("target")
    except OSError:
        pytest.skip("this machine does not allow links")
    write_bytes_atomically(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert contents(tmp_path) == {"target": b"new", "link": b"new"}


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="it is a folder, not a file"):
        write_bytes_atomically(tmp_path, b"x")
    with pytest.raises(OSError, match="it is a folder, not a file"):
        check_writable(tmp_path)
    assert contents(tmp_path) == {}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="it is a device or a pipe, not a file"):
        write_bytes_atomically(pipe, b"x")
    with pytest.raises(OSError, match="it is a device or a pipe, not a file"):
        check_writable(pipe)
    assert pipe.is_fifo()


def test_a_failed_write_is_told_by_its_own_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_bytes_atomically(tmp_path / "missing" / "a", b"x")
    with pytest.raises(TypeError):  # fails once the temporary file is open, as a full disk does
        write_bytes_atomically(tmp_path / "a", 5)  # type: ignore[arg-type]
    assert contents(tmp_path) == {}


def test_checking_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    check_writable(tmp_path / "a")
    check_writable(tmp_path / "b")
    assert contents(tmp_path) == {"a": b"old"}
