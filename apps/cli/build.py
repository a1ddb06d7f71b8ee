"""`nearfield build`: a checkpoint → a calibrated bundle, verified: quantize, export and verify in one go."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from . import export, quantize, verify
from .common import quoted

NAME = "build"
SUMMARY = "quantize, export and verify in one go"
DESCRIPTION = """\
Quantize a checkpoint on calibration data, make a bundle of it, and compare every graph of the bundle with the reference
implementation. The quantized checkpoint is removed afterwards; --keep says where to leave it.

Needs the optional parts: pip install ".[export,verify]" in a clone of the repository."""
EXAMPLES = """\
example:
  nearfield build Qwen2.5-Omni-7B -o omni-7b --calibration my-data --method awq"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="directory of the checkpoint")
    parser.add_argument("-o", "--output", metavar="BUNDLE", type=Path, required=True, help="directory to make")
    quantize.add_quantization_arguments(parser)
    export.add_graph_arguments(parser)
    parser.add_argument("--keep", metavar="DIR", type=Path, help="leave the quantized checkpoint here")


def run(args: argparse.Namespace) -> int:
    """Do the three, each saying what it did; 1 if the bundle is not what the reference is."""
    quantized = args.keep or args.output.absolute().parent / f".{args.output.name}.quantized"
    export.check_graph_arguments(args)  # before hours of work
    export.check_target(args.output, overwrite=args.overwrite)
    quantize.quantize(args, quantized)
    export.export(args, quantized, args.output)
    code = verify.compare(args.output, quantized)
    if args.keep is None:
        shutil.rmtree(quantized)
    print(f"next: nearfield ask {quoted(args.output)} --text hello --out reply.wav")
    return code
