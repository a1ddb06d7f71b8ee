"""What the commands share: what a command is, the demo's files, how a missing extra is reported, tables and sizes."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from ...errors import InputError, NearfieldError

DEMO_BUNDLE = Path(__file__).with_name("demo_data") / "bundle"
DEMO_QUESTION = Path(__file__).with_name("demo_data") / "question.wav"

IMAGE_PIXELS = 1280 * 28 * 28
"""Images are scaled down to this many pixels unless told otherwise: 1280 positions. A photograph would take 16 000."""


class Command(Protocol):
    """A module that is one command of the command line."""

    NAME: str
    SUMMARY: str
    """One line, for the list of commands."""
    DESCRIPTION: str
    """What it does and what it needs, for its own help."""
    EXAMPLES: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        ...

    def run(self, args: argparse.Namespace) -> int:
        """Do it; returns the exit code."""
        ...


@contextlib.contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Around imports that come with an optional part of the installation: says which part when one is missing.

    Raises `NearfieldError` for a package that is not installed; an error inside Nearfield itself passes through.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None:  # transformers' way to say that a package it tried to load is broken
            raise NearfieldError(
                f"a package this command needs cannot be loaded ({error.__cause__ or error}): "
                f'install "nearfield[{extra}]" into a fresh environment, and only what fits it'
            ) from error
        if error.name.partition(".")[0] == "nearfield":
            raise
        raise NearfieldError(
            f'this command needs {error.name}, which is not installed here: pip install "nearfield[{extra}]" '
            f'(in a clone of the repository: pip install -e ".[{extra}]")'
        ) from error


def table(rows: Sequence[Sequence[str]], *, right: frozenset[int] = frozenset()) -> str:
    """Lay out rows of equal length in columns; those in `right` are flushed right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = zip(row, widths, strict=True)
        lines.append(
            "  ".join(
                cell.rjust(width) if index in right else cell.ljust(width) for index, (cell, width) in enumerate(cells)
            ).rstrip()
        )
    return "\n".join(lines)


def size(size_bytes: float) -> str:
    """A number of bytes for people, in powers of 1000 as disks and file managers of today count."""
    for unit in ("B", "kB", "MB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.2f} GB"


def check_folder(*files: Path | None) -> None:
    """Refuse files that cannot be written where they are asked for, before any work; None is no file.

    Raises `InputError` when the folder is not there, or the file is a folder itself.
    """
    for file in files:
        if file is not None and not file.absolute().parent.is_dir():
            raise InputError(f"{file} cannot be written: the folder {file.parent} is not there; make it first")
        if file is not None and file.is_dir():
            raise InputError(f"{file} is a folder; expected the name of a file to write")
