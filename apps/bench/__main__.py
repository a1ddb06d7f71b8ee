"""`python -m nearfield.apps.bench [BUNDLE …]`: every comparison for each bundle; exit 1 where a ratio is missed."""

from __future__ import annotations

import argparse
import platform
import sys

import onnxruntime

from ...runtime.audio import read_audio
from ...runtime.omni import Omni
from ...runtime.session import DEVICES
from ..cli.common import BUNDLE_HELP, DEMO_QUESTIONS, bundle_path
from .first_sound import ANSWER_CODES, answer_length, question_length, real_time_factor, set_answer

_REAL_TIME_LIMIT = 0.5


def main() -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m nearfield.apps.bench", description=__doc__)
    parser.add_argument("bundles", nargs="*", default=["nano"], metavar="BUNDLE", help=BUNDLE_HELP)
    parser.add_argument("--repeats", type=int, default=15, help="pairs of each comparison (%(default)s)")
    parser.add_argument("--device", choices=DEVICES, default="cpu")
    parser.add_argument("--threads", type=int, help="of one operator; as many as there are cores unless told otherwise")
    args = parser.parse_args()
    print(f"{platform.system()} {platform.machine()}, ONNX Runtime {onnxruntime.__version__}, device {args.device}")
    missed = False
    for name in args.bundles:
        omni = Omni.load(bundle_path(name), device=args.device, threads=args.threads)
        print(f"{name}: {omni.bundle.manifest.model}")
        for measure in (question_length, answer_length):
            comparison = measure(omni, args.repeats)
            missed |= comparison.ratio > comparison.limit
            print(f"  {comparison}", flush=True)
        if name == "nano":
            questions = [read_audio(question.recording) for question in DEMO_QUESTIONS[:2]]
            factor = real_time_factor(omni.conversation(seed=0), questions)
            missed |= factor > _REAL_TIME_LIMIT
            verdict = f"at most {_REAL_TIME_LIMIT:g}: {'ok' if factor <= _REAL_TIME_LIMIT else 'MISSED'}"
        else:  # it may be random, which does not know when to stop speaking, and of any size
            factor, verdict = real_time_factor(*set_answer(omni)), f"in an answer of {ANSWER_CODES} codes"
        print(f"  work for a second of speech: {factor:.3f} s, {verdict}")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
