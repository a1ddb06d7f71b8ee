"""`nearfield inspect`: what is in a bundle, how much memory it takes, and whether it is whole."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ...errors import ContextLimitError
from .ask import DEVICES, positive
from .common import BUNDLE_HELP, CONTEXT, bundle_path, heard_seconds, size, table

if TYPE_CHECKING:
    from ...runtime.bundle import Bundle
    from ...runtime.manifest import Component, Manifest
    from ...runtime.memory_plan import MemoryPlan

NAME = "inspect"
SUMMARY = "say what is in a bundle and how much memory it takes, and check its files"
DESCRIPTION = """\
Show the components of a bundle, their types and sizes, its voices and limits, and how much memory each part takes, at
most, for a context and a video of a given length: known before anything is loaded. --context and --video-seconds say
for how much, --device where.

Always checked: the manifest, the size of every file, and the SHA-256 hash of files under 4 MB. With --check every file
is read and its hash compared, which takes as long as the disk takes."""
EXAMPLES = """\
examples:
  nearfield inspect omni-3b
  nearfield inspect omni-3b --context 32768 --video-seconds 20 --device cuda
  nearfield inspect omni-3b --check"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", type=bundle_path, help=BUNDLE_HELP)
    parser.add_argument("--check", action="store_true", help="also compare the hash of every file")
    memory = parser.add_argument_group("the memory plan")
    memory.add_argument(
        "--context",
        metavar="N",
        type=positive,
        help=f"positions of the conversation (default: {CONTEXT}, or all there are)",
    )
    memory.add_argument(
        "--video-seconds", metavar="S", type=seconds, default=0.0, help="length of a video in it (default: none)"
    )
    memory.add_argument("--device", choices=DEVICES, default="cpu", help="where graphs run (default: %(default)s)")


def seconds(text: str) -> float:
    """A length of time for argparse, 0 or more."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of seconds of 0 or more, found {text!r}")
    return value


def run(args: argparse.Namespace) -> int:
    """Open the bundle, describe it, and check it as far as asked."""
    from tqdm import tqdm

    from ...runtime.bundle import Bundle
    from . import memory

    bundle = Bundle.open(args.bundle)
    plan = memory_plan(bundle, args)
    print(describe(bundle.manifest))
    print()
    print(memory.describe(plan, memory.free_bytes(plan.workload)))
    print()
    if not args.check:
        print("Sizes of all files and hashes of the small ones are right; --check compares all hashes.")
        return 0
    with tqdm(
        total=bundle.total_bytes, unit="B", unit_scale=True, desc="hashing", file=sys.stderr, disable=None, leave=False
    ) as bar:

        def progress(done_bytes: int) -> None:
            bar.update(done_bytes)

        bundle.check(progress)
    print("Sizes and hashes of all files are right.")
    return 0


def memory_plan(bundle: Bundle, args: argparse.Namespace) -> MemoryPlan:
    """The plan for what the arguments ask for. Raises `InputError` for a context that cannot be."""
    from ...runtime.memory_plan import MemoryPlanner, Workload

    context = min(CONTEXT, bundle.manifest.thinker.max_positions) if args.context is None else args.context
    workload = Workload(device=args.device, context=context, video_seconds=args.video_seconds)
    try:
        return MemoryPlanner.of(bundle).plan(workload)
    except ContextLimitError as error:
        raise ContextLimitError(f"{error} (--context N, --video-seconds S)") from error


def describe(manifest: Manifest) -> str:
    """The bundle as text: a table of components, then what it can do."""
    return "\n".join(
        [
            f"{manifest.model}, exported by Nearfield {manifest.nearfield_version}, schema {manifest.schema_version}",
            "",
            table(list(_component_rows(manifest)), right=frozenset({3, 4, 5})),
            "",
            table(list(_facts(manifest))),
        ]
    )


def _component_rows(manifest: Manifest) -> Iterator[tuple[str, ...]]:
    total = sum(record.size_bytes for record in manifest.files.values())
    yield "component", "type", "linear layers", "parameters", "on disk", "share"
    counted = 0
    for name, component in manifest.components.items():
        on_disk = sum(manifest.files[file].size_bytes for file in (component.graph, component.data))
        counted += on_disk
        yield (
            name,
            f"{component.dtype}, {component.dialect}",
            _storage(component),
            _count(component.parameters),
            size(on_disk),
            f"{on_disk / total:.1%}",
        )
    rest = total - counted
    yield "tables, tokenizer, voices", "", "", "", size(rest), f"{rest / total:.1%}"
    parameters = sum(component.parameters for component in manifest.components.values())
    yield "all", "", "", _count(parameters), size(total), "100.0%"


def _storage(component: Component) -> str:
    """How linear layers are stored: `int4 rtn, groups of 128`, or the float type again."""
    quantization = component.quantization
    if quantization is None:
        return component.dtype
    zero_point = "symmetric" if quantization.symmetric else "asymmetric"
    return f"int{quantization.bits} {quantization.method}, groups of {quantization.group_size}, {zero_point}"


def _count(parameters: int) -> str:
    return f"{parameters / 1e6:,.1f} M" if parameters >= 1_000_000 else f"{parameters / 1e3:.1f} k"


def _facts(manifest: Manifest) -> Iterator[tuple[str, str]]:
    import numpy as np

    from ...runtime.memory_plan import cache_bytes

    thinker, talker, speech = manifest.thinker, manifest.talker, manifest.token2wav
    yield "voices", ", ".join(manifest.voices)
    yield "vocabulary", f"{thinker.vocab_size:,} text tokens, {speech.code_count:,} speech codes"
    yield "context", f"{thinker.max_positions:,} positions of text, sound and image; {talker.max_positions:,} of speech"
    for name, cache, component in (
        ("Thinker", thinker.kv_cache, manifest.components["thinker"]),
        ("Talker", talker.kv_cache, manifest.components["talker"]),
    ):
        kept = cache_bytes(cache, 1000, np.dtype(cache.stored_as(component)).itemsize)
        yield f"memory for the {name}'s context", f"{size(kept)} per 1000 positions"
    yield "sound", f"up to {heard_seconds(manifest.audio):g} s a clip"
    steps = (len(speech.ode.times) - 1) // 3
    yield "speech", f"{speech.sample_rate_hz / 1000:g} kHz, {speech.ode.solver} with {steps} steps"
