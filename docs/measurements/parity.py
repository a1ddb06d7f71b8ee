"""Every graph beside the reference, for both tiny checkpoints, both dialects and every type: the table of the README.

    python docs/measurements/parity.py > docs/measurements/parity.txt

Needs the extra `[test]`, and the test tree for the checkpoints.
"""

import datetime
import platform
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import onnxruntime
import reference  # first of all that imports transformers: it settles torchvision
import torch
import transformers
from checkpoints import SMALL_3B, SMALL_7B, write_checkpoint
from nearfield.export.export import ExportOptions, export_bundle
from nearfield.export.verify import verify

STYLES = {
    "float32": ExportOptions(bits=32),
    "float32, standard dialect": ExportOptions(bits=32, dialect="standard"),
    "float16": ExportOptions(bits=16, token2wav_float_type="float16"),
    "INT4 with float32": ExportOptions(bits=4, float_type="float32"),
    "INT4 with float16": ExportOptions(bits=4),
}


def main() -> None:
    """Print a line for every output of every bundle."""
    transformers.logging.set_verbosity_error()
    versions = (
        f"onnxruntime {onnxruntime.__version__}, transformers {transformers.__version__}, torch {torch.__version__}"
    )
    print(f"{datetime.date.today()}, CPU, Python {platform.python_version()}, {versions}")
    print("error = |graph - reference| / |reference|, the reference in float32 holding the graph's weights;")
    print("in float16 = the same of the reference itself computing in float16")
    line = "{:<9} {:<26} {:<15} {:<18} {:>9} {:>11} {}"
    print(line.format("shape", "bundle", "component", "output", "error", "in float16", ""))
    for shape in (SMALL_3B, SMALL_7B):
        with tempfile.TemporaryDirectory() as directory:
            checkpoint = write_checkpoint(Path(directory) / shape.name, shape)
            for name, options in STYLES.items():
                bundle = Path(directory) / name
                export_bundle(checkpoint, bundle, options)
                for row in verify(bundle, checkpoint):
                    halved = "" if row.reference_error is None else f"{row.reference_error:.1e}"
                    verdict = "ok" if row.passed else "MISS"
                    print(line.format(shape.name, name, row.component, row.output, f"{row.error:.1e}", halved, verdict))


if __name__ == "__main__":
    assert reference.load_model is not None
    main()
