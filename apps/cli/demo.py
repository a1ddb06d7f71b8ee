"""`nearfield demo`: a spoken conversation of three turns with the model that ships with Nearfield.

Inputs: the recorded questions and the picture in demo_data → outputs: the conversation on the screen, each reply as a
WAV file and, where there is a speaker, to be heard; how long each turn took.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ...errors import InputError
from .ask import CODES_PER_SECOND, DEVICES
from .common import DEMO_BUNDLE, DEMO_QUESTIONS, check_outputs

NAME = "demo"
SUMMARY = "a spoken conversation with Nano, the tiny model that ships with Nearfield"
DESCRIPTION = """\
Ask Nano, the tiny model that ships with Nearfield, three recorded questions; the second is about its first reply, the
third about a picture. Its replies are printed as they come, written as WAV files, and played where there is a speaker.
Nano is built like Qwen2.5-Omni but hundreds of times smaller, and knows a small world only: sums, digits, small talk,
transcripts, simple pictures and clips. Ask it more with `nearfield ask nano`."""
EXAMPLES = """\
examples:
  nearfield demo
  nearfield demo --voice Ethan --out replies --no-play
  nearfield demo --json demo.json --device cuda"""

VOICES = ("Chelsie", "Ethan")
_SEED = 0
_MAX_TOKENS, _MAX_SECONDS = 48, 8  # far more than a reply of Nano takes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        type=Path,
        default=Path("demo-replies"),
        help="where the replies go, as reply-1.wav and so on (default: %(default)s)",
    )
    parser.add_argument("--voice", choices=VOICES, default=VOICES[0], help="who replies (default: %(default)s)")
    parser.add_argument("--no-play", action="store_true", help="write the replies without playing anything")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write text and timing of all turns to FILE")
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="where graphs run (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Hold the conversation: every question follows all that was said before."""
    speech_files = _reply_files(args.out)
    check_outputs({"--json": args.json, **{f"--out ({file.name})": file for file in speech_files}}, {})
    from ...runtime.messages import SYSTEM_PROMPT, Message, Text
    from ...runtime.omni import Omni
    from .turn import latency, question, record, take, write_json, write_speech

    print("Three recorded questions to Nano, the tiny model that ships with Nearfield.")
    print("It hears the recordings; their words are printed only for you to read.")
    omni = Omni.load(DEMO_BUNDLE, device=args.device)
    player = _Player(on=not args.no_play)
    messages = [Message("system", [Text(SYSTEM_PROMPT)])]
    records = []
    for asked, speech_file in zip(DEMO_QUESTIONS, speech_files, strict=True):
        shown = f"   [with a picture: {asked.picture.name}]" if asked.picture is not None else ""
        print(f"\nYou (recorded): {asked.words}{shown}", flush=True)
        player.play(asked.recording)
        messages.append(question(audio=asked.recording, image=asked.picture))
        print("Nano: ", end="", flush=True)
        max_codes = _MAX_SECONDS * CODES_PER_SECOND
        events = omni.respond(messages, voice=args.voice, seed=_SEED, max_tokens=_MAX_TOKENS, max_codes=max_codes)
        reply = take(events, sys.stdout)
        messages.append(Message("assistant", [Text(reply.end.text)]))
        written = write_speech(speech_file, reply)
        print(f"  {latency(reply)}")
        if len(reply.samples):
            player.play(speech_file)
        else:
            print(f"  {written}")
        records.append({"question": asked.words, **record(reply)})
    print(f"\nRTF: time of the turn over length of its speech. Replies: {args.out}")
    if args.json is not None:
        write_json(args.json, {"voice": args.voice, "turns": records})
    return 0


def _reply_files(folder: Path) -> list[Path]:
    """The files for the replies, in a folder that is made when it is not there. Raises `InputError` if it cannot be."""
    try:
        folder.mkdir(exist_ok=True)
    except FileNotFoundError as error:
        raise InputError(f"{folder} cannot be made: the folder {folder.parent} is not there; make it first") from error
    except OSError as error:
        raise InputError(f"{folder} cannot be made a folder ({error.strerror}); choose another place") from error
    return [folder / f"reply-{number}.wav" for number, _ in enumerate(DEMO_QUESTIONS, start=1)]


class _Player:
    """Plays sound files until one cannot be heard; then says why, once, and is off."""

    def __init__(self, on: bool) -> None:
        self._on = on

    def play(self, path: Path) -> None:
        from .playback import play

        if self._on and (reason := play(path)) is not None:
            print(f"  silent: {reason}")
            self._on = False
