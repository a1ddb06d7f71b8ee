"""`nearfield quantize`: a checkpoint → a checkpoint of which some parts are quantized, by calibration."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .common import needs_extra, quoted

NAME = "quantize"
SUMMARY = "quantize a checkpoint, calibrated on sounds, pictures and text"
DESCRIPTION = """\
Quantize parts of a checkpoint, the Thinker and the Talker by default, layer by layer, on what calibration data makes of
them. The result is a checkpoint in the formats others read (GPTQ version 2, AWQ GEMM); `nearfield export` takes its
codes as they are. An interrupted run goes on when the same command is given again. docs/quantize.md says what
calibration data is, and which parts are worth it.

Needs the optional part: pip install ".[export]" in a clone of the repository. Torch is not needed. Memory: that of the
largest layer with the second moments of its inputs, or of one encoder."""
EXAMPLES = """\
examples:
  nearfield quantize Qwen2.5-Omni-7B -o omni-7b-int4 --calibration my-data
  nearfield quantize Qwen2.5-Omni-3B -o omni-3b-awq --calibration my-data --method awq
  nearfield quantize Qwen2.5-Omni-7B -o omni-7b-small --calibration my-data --components thinker,talker,audio,vision
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
        help="awq-gptq: AWQ's scales, then GPTQ; rtn: round to nearest (default: %(default)s). Linears behind a GELU "
        "or a norm of the DiT get no scales: there awq only clips, and awq-gptq is gptq",
    )
    parser.add_argument(
        "--bits", type=int, choices=(4, 8), help="of every part named (default: 4; 8 for encoders, DiT, 3B's Talker)"
    )
    parser.add_argument("--group-size", type=int, default=128, help="inputs that share a scale (default: %(default)s)")
    parser.add_argument("--symmetric", action="store_true", help="no zero points, as TensorRT wants it")
    parser.add_argument(
        "--components",
        default="thinker,talker",
        help="what to quantize, of thinker, talker, audio, vision, dit (default: %(default)s)",
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
        from ...calibrate.policy import modalities_for, parts_named
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
    samples = read_samples(args.calibration, needed=modalities_for(settings.parts))
    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    with tqdm(bar_format=form, smoothing=0, file=sys.stderr, disable=None, leave=False) as bar:

        def progress(what: str, done: float, total: float) -> None:
            if bar.total is None:  # what an earlier run did took no time of this one
                bar.total, bar.initial, bar.n = total, done, done
            bar.set_description(what, refresh=False)
            bar.update(done - bar.n)

        errors = quantize_checkpoint(args.checkpoint, target, samples, settings, progress)
    print(table(errors))
