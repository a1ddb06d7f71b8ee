"""`nearfield verify`: the graphs of a bundle beside the reference implementation."""

from __future__ import annotations

import argparse
from pathlib import Path

from .common import needs_extra

NAME = "verify"
SUMMARY = "compare a bundle with the reference implementation"
DESCRIPTION = """\
Run every graph of a bundle and the same part of the reference implementation (transformers, on torch) on the same
inputs, and print how far apart they are: error = |graph - reference| / |reference|, the reference holding the same
weights as the graph. For float16 components "in float16" is what the reference loses by computing in that type: a
graph over its limit passes if it is about as exact as that. For INT4 components "quantization" is what the rounding of
the weights itself costs. Exit code 1 if any output misses.

Needs the optional part: pip install "nearfield[verify]". Memory: that of the largest layer in float32."""
EXAMPLES = """\
example:
  nearfield verify omni-3b --against Qwen2.5-Omni-3B"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="directory of the bundle")
    parser.add_argument(
        "--against", metavar="CHECKPOINT", type=Path, required=True, help="directory of the checkpoint it came from"
    )


def run(args: argparse.Namespace) -> int:
    """Print a line for every output as it is compared; 1 if one is over its limit."""
    with needs_extra("verify"):
        from ...export.verify import verify

    line = "{:<16} {:<18} {:>9} {:>9} {:>11} {:>13}  {}"
    print(line.format("component", "output", "error", "limit", "in float16", "quantization", ""), flush=True)
    misses = 0
    for row in verify(args.bundle, args.against):
        figures = [
            "" if figure is None else f"{figure:.2e}"
            for figure in (row.error, row.limit, row.reference_error, row.quantization_error)
        ]
        print(line.format(row.component, row.output, *figures, "ok" if row.passed else "MISS"), flush=True)
        misses += not row.passed
    print("all outputs are within their limits" if misses == 0 else f"{misses} outputs are over their limits")
    return int(misses > 0)
