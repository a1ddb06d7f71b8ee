"""`nearfield verify`: the graphs of a bundle beside the reference implementation."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .common import BUNDLE_HELP, bundle_path, needs_extra

if TYPE_CHECKING:
    from ...export.verify import Row

Mark = Literal["ok", "ok*", "MISS"]

NAME = "verify"
SUMMARY = "compare a bundle with the reference implementation"
DESCRIPTION = """\
Run every graph of a bundle and the same part of the reference implementation (transformers, on torch) on the same
inputs, and print how far apart they are: error = |graph - reference| / |reference|, the reference holding the same
weights as the graph. For float16 components "in float16" is what the reference loses by computing in that type: a
graph over its limit passes, as "ok*", if it is about as exact as that. For INT4 components "quantization" is what the
rounding of the weights itself costs. Exit code 1 if any output misses.

Needs the optional part: pip install ".[verify]" in a clone of the repository. Memory: that of the largest layer
in float32."""
EXAMPLES = """\
example:
  nearfield verify omni-3b --against Qwen2.5-Omni-3B"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", type=bundle_path, help=BUNDLE_HELP)
    parser.add_argument(
        "--against", metavar="CHECKPOINT", type=Path, required=True, help="directory of the checkpoint it came from"
    )


def run(args: argparse.Namespace) -> int:
    """Print a line for every output as it is compared; 1 if one is over its limit."""
    return compare(args.bundle, args.against)


def compare(bundle: Path, checkpoint: Path) -> int:
    """Print the table; returns the exit code."""
    with needs_extra("verify"):
        from ...export.verify import verify

    line = "{:<16} {:<18} {:>9} {:>9} {:>11} {:>13}  {}"
    marks: Counter[Mark] = Counter()
    for row in verify(bundle, checkpoint):
        if not marks:
            print(line.format("component", "output", "error", "limit", "in float16", "quantization", ""))
        figures = [
            "" if figure is None else f"{figure:.2e}"
            for figure in (row.error, row.limit, row.reference_error, row.quantization_error)
        ]
        print(line.format(row.component, row.output, *figures, mark(row)), flush=True)
        marks[mark(row)] += 1
    print(verdict(marks))
    return int(marks["MISS"] > 0)


def mark(row: Row) -> Mark:
    """How an output fared; the star is for one over its limit whose reference is hardly better in float16."""
    if not row.passed:
        return "MISS"
    return "ok" if row.error <= row.limit else "ok*"


def verdict(marks: Counter[Mark]) -> str:
    """The last lines of the table: what the star stands for, if there is one, and the result."""
    lines = []
    if marks["ok*"]:
        lines.append("* over the limit, and about as exact as the reference itself is in float16")
    if marks["MISS"]:
        lines.append(f"{marks['MISS']} of {marks.total()} outputs miss")
    elif marks["ok*"]:
        lines.append(f"all outputs pass, {marks['ok']} within their limits and {marks['ok*']} by the reference (*)")
    else:
        lines.append("all outputs are within their limits")
    return "\n".join(lines)
