"""`nearfield export`: a checkpoint → a bundle."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ...errors import InputError
from .common import needs_extra, quoted, size

if TYPE_CHECKING:
    from ...export.attention import CacheScales
    from ...runtime.manifest import ComponentName

NAME = "export"
SUMMARY = "make a bundle from a downloaded checkpoint"
DESCRIPTION = """\
Make a bundle from a checkpoint: a directory as published, with config.json, the safetensors files, the tokenizer and
spk_dict.pt (the voices). Nothing is downloaded. The bundle appears when it is whole; a failed export leaves nothing.

A checkpoint that is quantized already (AWQ GEMM or GPTQ; `nearfield quantize` makes such ones) is taken as it is: its
codes go into the graphs unchanged, and what it has as floats stays floats. --bits 16 or 32 turns codes into floats.

Needs the optional part: pip install ".[export]" in a clone of the repository. Torch is not needed. Memory: that of the
largest tensor."""
EXAMPLES = """\
examples:
  nearfield export Qwen2.5-Omni-3B -o omni-3b                      4-bit language model, the rest in float16
  nearfield export Qwen2.5-Omni-3B -o omni-3b --dtype float32      the same for a CPU, where float16 is slow
  nearfield export Qwen2.5-Omni-7B -o omni-7b --bits 16            nothing quantized
  nearfield export Qwen2.5-Omni-7B -o omni-7b --dialect standard   standard ONNX operators only
  nearfield export Qwen2.5-Omni-7B -o omni-7b --kv-cache int8 --calibration my-data   half the memory of a context"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="directory of the checkpoint")
    parser.add_argument("-o", "--output", metavar="BUNDLE", type=Path, required=True, help="directory to make")
    parser.add_argument(
        "--bits",
        type=int,
        choices=(4, 16, 32),
        default=4,
        help="4: linear layers of Thinker and Talker as INT4, or as a quantized checkpoint has them; 16, 32: floats "
        "throughout (default: %(default)s)",
    )
    add_graph_arguments(parser)
    parser.add_argument(
        "--calibration",
        metavar="DIR",
        type=Path,
        help="for --kv-cache int8: folder of conversations (docs/quantize.md)",
    )
    parser.set_defaults(usage_error=parser.error, threads=None)


def add_graph_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `nearfield build` has in common with this command."""
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        help="type of activations and of weights that are not INT4 (default: float32 with --bits 32, else float16)",
    )
    parser.add_argument(
        "--dialect",
        choices=("ort", "standard"),
        default="ort",
        help="ort: ONNX Runtime's own operators, fastest there; standard: ONNX operators only (default: %(default)s)",
    )
    parser.add_argument(
        "--accuracy-level",
        type=int,
        choices=(1, 4),
        help="INT4 on a CPU: 4 computes with int8 activations, 1 in float32 (default: 4)",
    )
    parser.add_argument(
        "--kv-cache",
        choices=("same", "float16", "int8"),
        default="same",
        help="type keys and values of a conversation are kept in: that of activations, or a smaller one, with dialect "
        "ort and ONNX Runtime 1.27. On a CPU int8 is faster, float16 slow (default: %(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace BUNDLE if it is there")


def run(args: argparse.Namespace) -> int:
    """Export, with a progress bar on a terminal, and say what was made."""
    if args.bits != 4 and args.dtype not in (None, f"float{args.bits}"):
        args.usage_error(f"--bits {args.bits} stores float{args.bits}, --dtype asks for {args.dtype}; leave one out")
    if args.bits != 4 and args.accuracy_level is not None:
        args.usage_error(f"--accuracy-level is about INT4 weights, which --bits {args.bits} does not make")
    if args.calibration is not None and args.kv_cache != "int8":
        args.usage_error("--calibration is for --kv-cache int8; `nearfield quantize` calibrates weights")
    export(args, args.checkpoint, args.output, args.bits)
    bundle = quoted(args.output)
    print(f"next: nearfield inspect {bundle}; nearfield ask {bundle} --text hello --out reply.wav")
    return 0


def export(args: argparse.Namespace, checkpoint: Path, target: Path, bits: Literal[4, 16, 32] = 4) -> None:
    """Make the bundle that the arguments ask for, and say what it is."""
    with needs_extra("export"):
        from ...export.export import ExportOptions, export_bundle

    check_graph_arguments(args)
    scales = _kv_scales(args, checkpoint, target) if args.kv_cache == "int8" else {}
    options = ExportOptions(
        bits=bits,
        float_type=args.dtype,
        dialect=args.dialect,
        accuracy_level=args.accuracy_level or 4,
        kv_cache=args.kv_cache,
        kv_scales=scales,
        overwrite=args.overwrite,
    )
    with _bar(" weights") as progress:
        manifest = export_bundle(checkpoint, target, options, progress)
    total = sum(record.size_bytes for record in manifest.files.values())
    print(f"{target}: {manifest.model}, {len(manifest.components)} components, {size(total)}")


def check_graph_arguments(args: argparse.Namespace) -> None:
    """Raise `InputError` now for options of the cache that do not go together."""
    if args.kv_cache == "same":
        return
    if args.dialect != "ort":
        raise InputError(f"--kv-cache {args.kv_cache} needs --dialect ort; {args.dialect} keeps the activations' type")
    if args.kv_cache == "int8" and args.calibration is None:
        raise InputError(
            "--kv-cache int8 needs --calibration DIR, conversations that show how large keys and values get; "
            "docs/quantize.md describes the folder"
        )


def _kv_scales(args: argparse.Namespace, checkpoint: Path, target: Path) -> Mapping[ComponentName, CacheScales]:
    """Scales of an int8 cache; graphs lie beside the target for the time being, where there must be room anyway."""
    with needs_extra("export"):
        from ...calibrate.kv_scales import kv_scales
        from ...calibrate.samples import read_samples
        from ...export.checkpoint import Checkpoint

    check_target(target, overwrite=args.overwrite)
    samples = read_samples(args.calibration)
    with (
        tempfile.TemporaryDirectory(dir=target.absolute().parent, prefix=".nearfield-") as folder,
        _bar("") as progress,
    ):
        return kv_scales(Checkpoint.open(checkpoint), samples, Path(folder), args.threads, progress)


@contextmanager
def _bar(unit: str) -> Iterator[Callable[[str, float, float], None]]:
    """A progress bar on a terminal; yields what is to be called with what is at work, how much is done, of how much."""
    from tqdm import tqdm

    with tqdm(unit=unit, unit_scale=True, file=sys.stderr, disable=None, leave=False) as bar:

        def progress(what: str, done: float, total: float) -> None:
            bar.set_description(what, refresh=False)
            bar.total = total
            bar.update(done - bar.n)

        yield progress


def check_target(target: Path, *, overwrite: bool) -> None:
    """Raise `BundleError` now for what would refuse a bundle there in the end."""
    with needs_extra("export"):
        from ...export.bundle_writer import BundleWriter
    with BundleWriter(target, overwrite=overwrite):
        pass
