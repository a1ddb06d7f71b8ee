"""`nearfield ask`: a question in text, sound or an image → an answer in text and speech."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ...errors import ContextLimitError
from .common import BUNDLE_HELP, CONTEXT, IMAGE_PIXELS, bundle_path, check_outputs
from .memory import OVERRIDE, OVERRIDE_HELP, require_fit

NAME = "ask"
SUMMARY = "ask a bundle something; it answers in text and speech"
DESCRIPTION = """\
Ask a bundle a question: text, a sound file, an image, or several of these. The answer's text goes to standard output as
it is written, its speech into a WAV file."""
EXAMPLES = """\
examples:
  nearfield ask nano --text "What is 34 + 27?"
  nearfield ask omni-3b --audio question.wav --out reply.wav
  nearfield ask omni-3b --text "Tell me a story." --voice Ethan --seed 7
  nearfield ask omni-3b --image photo.jpg --text "What is this?" --no-speech"""

CODES_PER_SECOND = 50
"""Of the Talker: a code stands for two mel frames of 10 ms."""

DEVICES = ("cpu", "cuda", "tensorrt-rtx")
"""`runtime.session.DEVICES`, which is not imported for the sake of a quick help."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", type=bundle_path, help=BUNDLE_HELP)
    question = parser.add_argument_group("the question (at least one)")
    question.add_argument("--text", metavar="TEXT", help="in words")
    question.add_argument("--audio", metavar="FILE", type=Path, help="a sound file: WAV, FLAC, OGG, MP3")
    question.add_argument("--image", metavar="FILE", type=Path, help="an image file")
    question.add_argument(
        "--system",
        metavar="TEXT",
        help="instructions to the model (default: its publisher's, with which it was trained to speak)",
    )
    question.add_argument(
        "--image-pixels",
        metavar="N",
        type=positive,
        default=IMAGE_PIXELS,
        help="scale the image down to this many, 784 for each position it takes (default: %(default)s)",
    )
    answer = parser.add_argument_group("the answer")
    answer.add_argument("--voice", metavar="NAME", help="a voice of the bundle (nearfield inspect lists them)")
    answer.add_argument(
        "--out", metavar="FILE", type=Path, default=Path("reply.wav"), help="where speech goes (default: %(default)s)"
    )
    answer.add_argument("--no-speech", action="store_true", help="text only, which is quicker")
    answer.add_argument("--json", metavar="FILE", type=Path, help="also write the text and the timing to FILE")
    answer.add_argument(
        "--max-tokens", metavar="N", type=positive, default=512, help="most tokens of text (default: %(default)s)"
    )
    answer.add_argument(
        "--max-seconds", metavar="N", type=positive, default=80, help="most seconds of speech (default: %(default)s)"
    )
    answer.add_argument(
        "--seed", metavar="N", type=not_negative, default=0, help="of everything random (default: %(default)s)"
    )
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="where graphs run (default: %(default)s)")
    parser.add_argument(
        "--context",
        metavar="N",
        type=positive,
        default=CONTEXT,
        help="most positions question and answer may take; each takes memory (default: %(default)s)",
    )
    parser.add_argument(OVERRIDE, action="store_true", help=OVERRIDE_HELP)
    parser.set_defaults(usage_error=parser.error)


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    return _whole_number(text, 1, "above 0")


def not_negative(text: str) -> int:
    """A whole number of 0 or more, for argparse."""
    return _whole_number(text, 0, "of 0 or more")


def _whole_number(text: str, least: int, range_text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"expected a whole number {range_text}, found {text!r}")
    return value


def run(args: argparse.Namespace) -> int:
    """Answer one question: its text on standard output, everything else on standard error."""
    if args.text is None and args.audio is None and args.image is None:
        args.usage_error("give a question: --text, --audio or --image")
    if args.no_speech and args.voice is not None:
        args.usage_error("--voice has no use with --no-speech; leave one of them out")
    speech = None if args.no_speech else args.out
    check_outputs({"--out": speech, "--json": args.json}, {"--audio": args.audio, "--image": args.image})
    from ...runtime.bundle import Bundle
    from ...runtime.memory_plan import MemoryPlanner, Workload
    from ...runtime.omni import Omni
    from .turn import conversation, cut_sound, cuts, record, summary, take, write_json, write_speech

    messages = conversation(
        system=args.system, audio=args.audio, image=args.image, text=args.text, image_pixels=args.image_pixels
    )
    bundle = Bundle.open(args.bundle)
    if args.voice is not None:
        bundle.voice(args.voice)  # a wrong name is found before gigabytes are loaded
    if warning := cut_sound(messages, bundle.manifest.audio):
        print(f"nearfield: {warning}", file=sys.stderr)
    max_codes = args.max_seconds * CODES_PER_SECOND
    if not args.ignore_memory:
        workload = Workload(
            device=args.device,
            context=args.context,
            image_pixels=0 if args.image is None else args.image_pixels,
            codes=0 if speech is None else max_codes,
        )
        require_fit(MemoryPlanner.of(bundle), workload)
    if sys.stderr.isatty():
        print(f"loading {args.bundle} …", file=sys.stderr)
    omni = Omni.load(args.bundle, device=args.device, context=args.context)
    try:
        events = omni.respond(
            messages,
            voice=args.voice,
            speak=speech is not None,
            seed=args.seed,
            max_tokens=args.max_tokens,
            max_codes=max_codes,
        )
        reply = take(events, sys.stdout)
    except ContextLimitError as error:
        raise ContextLimitError(f"{error} (--context N, --image-pixels N)") from error
    if speech is not None:
        print(write_speech(speech, reply), file=sys.stderr)
    print("; ".join([summary(reply), *cuts(reply, max_codes)]), file=sys.stderr)
    if args.json is not None:
        write_json(args.json, record(reply))
    if reply.text_error is not None:
        raise reply.text_error
    return 0
