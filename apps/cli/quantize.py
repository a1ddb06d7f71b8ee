"""`nearfield quantize`: a checkpoint → a checkpoint whose language and speech models are quantized, by calibration."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .common import needs_extra, quoted

NAME = "quantize"
SUMMARY = "quantize a checkpoint, calibrated on sounds, pictures and text"
DESCRIPTION = """\
Quantize the Thinker and the Talker of a checkpoint, layer by layer, on what calibration data makes of them. The result
is a checkpoint in the formats others read (GPTQ version 2, AWQ GEMM); `nearfield export` takes its codes as they are.
An interrupted run goes on when the same command is given again. docs/quantize.md says what calibration data is.

Needs the optional part: pip install ".[export]" in a clone of the repository. Torch is not needed. Memory: that of the
largest layer with the second moments of its inputs, or of one encoder."""
EXAMPLES = """\
examples:
  nearfield quantize Qwen2.5-Omni-7B -o omni-7b-int4 --calibration my-data
  nearfield quantize Qwen2.5-Omni-3B -o omni-3b-awq --calibration my-data --method awq
  nearfield quantize nano/checkpoint -o nano-int4 --calibration nano/calibration      nano's own, in the repository"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="directory of the checkpoint")
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, required=True, help="directory to make")
    add_quantization_arguments(parser)


def add_quantization_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `nearfield build` has in common with this command."""
    parser.add_argument(
        "--calibration", metavar="DIR", type=Path, required=True, help="folder of conversations: calibration.jsonl"
    )
    parser.add_argument(
        "--method",
        choices=("awq-gptq", "gptq", "awq", "rtn"),
        default="awq-gptq",
        help="awq-gptq: AWQ's scales, then GPTQ; rtn: round to nearest (default: %(default)s)",
    )
    parser.add_argument("--bits", type=int, choices=(4, 8), help="of every part (default: 4; the Talker of 3B has 8)")
    parser.add_argument("--group-size", type=int, default=128, help="inputs that share a scale (default: %(default)s)")
    parser.add_argument("--symmetric", action="store_true", help="no zero points, as TensorRT wants it")
    parser.add_argument(
        "--components", default="thinker,talker", help="what to quantize: thinker, or thinker,talker (default)"
    )
    parser.add_argument("--threads", type=int, help="threads of an operator (default: all cores)")


def run(args: argparse.Namespace) -> int:
    """Quantize, with a progress bar on a terminal, and print what it cost."""
    quantize(args, args.output)
    print(f"next: nearfield export {quoted(args.output)} -o BUNDLE")
    return 0


def quantize(args: argparse.Namespace, target: Path) -> None:
    """What the arguments ask for, into `target`; prints the table of errors."""
    with needs_extra("export"):
        from ...calibrate.policy import parts_named
        from ...calibrate.quantize import Settings, quantize_checkpoint
        from ...calibrate.report import table
        from ...calibrate.samples import read_samples
    from tqdm import tqdm

    settings = Settings(
        method=args.method,
        bits=args.bits,
        group_size=args.group_size,
        symmetric=args.symmetric,
        parts=parts_named(args.components),
        threads=args.threads,
    )
    samples = read_samples(args.calibration)
    at_work = ""
    with tqdm(file=sys.stderr, disable=None, leave=False) as bar:

        def progress(what: str, done: int, total: int) -> None:
            nonlocal at_work
            if what != at_work:
                at_work = what
                bar.reset(total)
                bar.set_description(what)
            bar.update(done - bar.n)

        errors = quantize_checkpoint(args.checkpoint, target, samples, settings, progress)
    print(table(errors))
