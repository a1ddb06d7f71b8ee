"""`nearfield demo`: the whole chain on the bundle and the spoken question that ship with Nearfield."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .ask import CODES_PER_SECOND, DEVICES
from .common import DEMO_BUNDLE, DEMO_QUESTION, check_outputs

NAME = "demo"
SUMMARY = "run the whole chain on a tiny bundle that ships with Nearfield"
DESCRIPTION = """\
Answer a recorded question with a tiny bundle that ships with Nearfield. Its weights are random, so the answer is noise:
it shows that hearing, language model, speech model and vocoder run here, and nothing about answers of a real bundle."""
EXAMPLES = """\
examples:
  nearfield demo --out demo.wav
  nearfield demo --json demo.json --device cuda"""


_QUESTION = "What is seven plus four?"
_SEED = 0
_MAX_TOKENS, _MAX_SECONDS = 24, 2  # random weights seldom end of themselves


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--out", metavar="FILE", type=Path, default=Path("demo.wav"), help="where speech goes (default: %(default)s)"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the text and the timing to FILE")
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="where graphs run (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Answer the recorded question and say what it shows and what it does not."""
    check_outputs({"--out": args.out, "--json": args.json}, {})
    from ...runtime.omni import Omni
    from .turn import conversation, summary, take, write_json, write_speech

    print(f"question (recorded, spoken): {_QUESTION}")
    print("The weights of the demo bundle are random: the answer is noise, and shows only that the whole chain runs.")
    messages = conversation(audio=DEMO_QUESTION)
    omni = Omni.load(DEMO_BUNDLE, device=args.device)
    print("transcript of the answer: ", end="")
    events = omni.respond(messages, seed=_SEED, max_tokens=_MAX_TOKENS, max_codes=_MAX_SECONDS * CODES_PER_SECOND)
    reply = take(events, sys.stdout)
    print(write_speech(args.out, reply))
    print(summary(reply))
    if args.json is not None:
        write_json(args.json, reply)
    return 0
