"""Make the bundle that `nearfield demo` runs: a tiny random checkpoint, exported in INT4 → apps/cli/demo_data/bundle.

Run from the repository's environment after a change to the exporter or the manifest: `.venv/bin/python
tests/make_demo_bundle.py`. The same code gives the same bytes. Only the vocoder and the DiT keep their published
structure in full; widths are chosen so that the whole is well under 2 MB.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import reference  # noqa: F401  # before transformers: it settles torchvision
import torch
import transformers
from checkpoints import Shape, write_checkpoint
from nearfield.apps.cli.common import DEMO_BUNDLE
from nearfield.export.export import ExportOptions, export_bundle

DEMO = Shape(
    name="demo-random",
    vocabulary=624,
    hidden=48,
    layers=2,
    heads=3,
    kv_heads=1,
    ffn=96,
    tied=True,
    talker_hidden=48,
    talker_heads=3,
    talker_kv_heads=1,
    talker_head_dim=16,
    talker_ffn=96,
    audio_width=24,
    audio_heads=2,
    audio_ffn=48,
    vision_width=16,
    vision_heads=2,
    vision_ffn=32,
    vision_depth=2,
    vision_full_attention=(1,),
    dit_width=32,
    vocoder_channels=64,
    vocoder_kernels=(3,),
)
LIMIT_BYTES = 2_000_000
"""More than this does not belong in a repository or a wheel."""


def make(target: Path) -> int:
    """Write the demo bundle into ``target``, in place of one that is there; returns its size in bytes."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(Path(folder) / DEMO.name, DEMO)
        # float32: half precision is slower on the CPUs a demo runs on, and some operators lack it there.
        options = ExportOptions(bits=4, float_type="float32", overwrite=True)
        export_bundle(checkpoint, target, options)
    return sum(file.stat().st_size for file in target.iterdir())


if __name__ == "__main__":
    size_bytes = make(DEMO_BUNDLE)
    sys.stdout.write(f"{DEMO_BUNDLE}: {size_bytes:,} bytes\n")
    sys.exit(0 if size_bytes <= LIMIT_BYTES else f"more than {LIMIT_BYTES:,} bytes")
