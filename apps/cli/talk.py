"""`nearfield talk`: a spoken conversation through the microphone and the speaker."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import AudioDeviceError, InputError
from .ask import DEVICES, positive
from .common import CONTEXT, DEMO_BUNDLE, IMAGE_PIXELS, bundle_path, needs_extra
from .memory import OVERRIDE, OVERRIDE_HELP, require_fit

if TYPE_CHECKING:
    from ..terminal.shown import Shown
    from ..voice.assistant import Assistant
    from ..voice.store import ConversationStore

NAME = "talk"
SUMMARY = "a spoken conversation: speak, be answered, interrupt"
DESCRIPTION = """\
Talk with a bundle. It listens all the time, answers when you pause, and stops when you speak. The screen shows who has
the word, what is said and how long answers take, and at its bottom the keys: interrupt, mute, push-to-talk, another
voice, a picture, save, quit. Where standard output is no terminal it writes a line for each event. Every turn is kept
on this machine, and nowhere else (--no-store: not at all).

Needs the optional part: pip install ".[voice]" in a clone of the repository."""
EXAMPLES = """\
examples:
  nearfield talk
  nearfield talk omni-3b --device cuda --voice Ethan
  nearfield talk --list-devices
  nearfield talk omni-3b --microphone headset --push-to-talk hold --save talks"""

EAGERNESS = ("low", "medium", "high")
"""`apps.voice.patience.Eagerness`, which is not imported for the sake of a quick help."""
PUSH_TO_TALK = ("hold", "toggle")
"""`apps.voice.turn_taking.PushToTalk`, but for off."""
STORE_FILE = "conversations.sqlite"
_NANO_CONTEXT = 640
"""Nano was trained on conversations of up to nine turns: longer ones confuse it, so its oldest turns leave early."""
_SET_ASIDE = "the file of earlier conversations was damaged and is set aside as {}"
SAVE_FOLDER = Path("conversations")
"""Where the key for it saves when no folder was given."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "bundle",
        metavar="BUNDLE",
        nargs="?",
        type=bundle_path,
        default=DEMO_BUNDLE,
        help="directory of the bundle (default: nano, the tiny model that ships with Nearfield)",
    )
    parser.add_argument("--voice", metavar="NAME", help="a voice of the bundle (nearfield inspect lists them)")
    parser.add_argument(
        "--system",
        metavar="TEXT",
        help="instructions to the model (default: its publisher's, with which it was trained to speak)",
    )
    sound = parser.add_argument_group("sound")
    sound.add_argument("--list-devices", action="store_true", help="list microphones and speakers, and end")
    sound.add_argument("--microphone", metavar="NAME", help="its name or a part of it (default: the system's)")
    sound.add_argument("--speaker", metavar="NAME", help="its name or a part of it (default: the system's)")
    sound.add_argument(
        "--no-echo-cancellation",
        action="store_true",
        help="take the microphone as it is: with headphones, or where the system already removes the echo",
    )
    turns = parser.add_argument_group("taking turns")
    turns.add_argument(
        "--eagerness",
        choices=EAGERNESS,
        default="medium",
        help="how short a pause ends your turn: about 1, 0.64 or 0.42 s (default: %(default)s)",
    )
    turns.add_argument(
        "--push-to-talk",
        choices=PUSH_TO_TALK,
        help="hear you only while SPACE is held, or between two presses of it",
    )
    turns.add_argument(
        "--smart-turn",
        metavar="MODEL.onnx",
        type=Path,
        help="also judge by the sound whether you are done, with a Smart Turn v3 model you have",
    )
    kept = parser.add_argument_group("what is kept and shown")
    kept.add_argument("--transcribe", action="store_true", help="show what the model heard (key T)")
    kept.add_argument(
        "--save",
        metavar="FOLDER",
        type=Path,
        help="save the conversation there at the end, as text and WAV in a folder of its own (key S: at any time)",
    )
    where = kept.add_mutually_exclusive_group()
    where.add_argument("--data-dir", metavar="FOLDER", type=Path, help="where turns are kept (default: your user data)")
    where.add_argument("--no-store", action="store_true", help="keep nothing")
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="where graphs run (default: %(default)s)")
    parser.add_argument(
        "--context",
        metavar="N",
        type=positive,
        help=f"positions the model remembers; each takes memory (default: {CONTEXT}; nano: {_NANO_CONTEXT})",
    )
    parser.add_argument(OVERRIDE, action="store_true", help=OVERRIDE_HELP)


def run(args: argparse.Namespace) -> int:
    """Hold the conversation until somebody ends it; returns 0, also where a key or Ctrl-D ended it."""
    with needs_extra("voice"):
        from ..terminal import screen  # noqa: F401  # imports rich, which may be missing
        from ..voice.sound_device import DeviceChoice, SoundDevice
        from .devices import find_devices, listing
    choice = DeviceChoice(args.microphone, args.speaker, not args.no_echo_cancellation)
    if args.list_devices:
        print(listing(find_devices(choice)))
        return 0
    folder = own_folder(args.save or SAVE_FOLDER, datetime.now(), asked_for=args.save is not None)
    if args.push_to_talk and not (sys.stdin is not None and sys.stdin.isatty()):
        raise InputError("--push-to-talk needs a key, and standard input is no terminal: leave it out")
    from ...runtime.bundle import Bundle
    from ...runtime.memory_plan import MemoryPlanner, Workload
    from ...runtime.messages import SYSTEM_PROMPT
    from ...runtime.omni import Omni
    from ..terminal.shown import Shown
    from ..voice.assistant import Assistant
    from ..voice.patience import Patience
    from ..voice.smart_turn import SmartTurn
    from ..voice.steady_memory import keep_memory_steady

    keep_memory_steady()
    # All that can be wrong is found before gigabytes are loaded, a missing microphone too.
    bundle = Bundle.open(args.bundle)
    context = args.context or (_NANO_CONTEXT if args.bundle == DEMO_BUNDLE else CONTEXT)
    if args.voice is not None:
        bundle.voice(args.voice)
    complete = None if args.smart_turn is None else SmartTurn(args.smart_turn)
    if not args.ignore_memory:
        workload = Workload(device=args.device, context=context, image_pixels=IMAGE_PIXELS)
        require_fit(MemoryPlanner.of(bundle), workload)
    if trouble := find_devices(choice).trouble:
        raise AudioDeviceError(trouble)
    store = None if args.no_store else open_store(args.data_dir)
    device = SoundDevice(choice)
    name = model_name(args.bundle)
    if sys.stderr.isatty():
        print(f"loading {name} …", file=sys.stderr)
    omni = Omni.load(args.bundle, device=args.device, context=context, threads=_threads())
    assistant = Assistant(
        omni,
        device,
        voice=args.voice,
        system=SYSTEM_PROMPT if args.system is None else args.system,
        patience=Patience.of(args.eagerness),
        transcribe=args.transcribe,
        store=store,
        complete=complete,
        name=name,
        image_pixels=IMAGE_PIXELS,
    )
    shown = Shown(name, args.device, args.voice or omni.voices[0], transcribe=args.transcribe)
    if args.push_to_talk:
        assistant.push_to_talk(args.push_to_talk)
        shown.push_to_talk = args.push_to_talk
    notes = [] if store is None or store.set_aside is None else [_SET_ASIDE.format(store.set_aside)]
    converse(assistant, shown, voices=omni.voices, folder=folder, save=args.save is not None, notes=notes)
    return 0


def _threads() -> int:
    """How many threads an operator may use: a reply has three stages at work at once, and the audio needs a core."""
    return max(1, (os.cpu_count() or 2) // 2)


def converse(
    assistant: Assistant,
    shown: Shown,
    *,
    voices: Sequence[str],
    folder: Path,
    save: bool,
    notes: Sequence[str] = (),
) -> None:
    """Hold a conversation on standard output with the keys of standard input, then close the assistant.

    `notes` are shown at the beginning. With `save` it is written into `folder` at the end, whatever ended it.
    """
    from ..terminal.controls import NOTHING_SAID, Controls, hold_conversation
    from ..terminal.keys import open_keys
    from ..terminal.lines import Lines
    from ..terminal.screen import Screen, can_draw

    out = sys.stdout
    errors = io.StringIO()  # what a library writes there would stand across the screen
    try:
        with contextlib.ExitStack() as stack:
            display: Screen | Lines
            if can_draw(out):
                stack.callback(lambda: sys.stderr.write(errors.getvalue()))
                stack.enter_context(contextlib.redirect_stderr(errors))
                display = stack.enter_context(Screen(shown, out))
            else:
                display = Lines(shown.bundle, out)
            keys = stack.enter_context(open_keys(sys.stdin))
            for note in notes:
                display.tell(note)
            controls = Controls(assistant, shown, display, voices=voices, save_folder=folder)
            hold_conversation(assistant, display, keys, controls)
    finally:
        try:
            if save:
                files = assistant.save(folder)
                print(f"saved: {', '.join(map(str, files))}" if files else NOTHING_SAID)
        finally:
            assistant.close()


def own_folder(base: Path, begun: datetime, *, asked_for: bool) -> Path:
    """The folder of this conversation in the one for all, by the time it began, so that none replaces another.

    Raises `InputError` when a folder that was asked for cannot be one.
    """
    if asked_for and base.exists() and not base.is_dir():
        raise InputError(f"--save {base} is a file; give a folder")
    if asked_for and not base.absolute().parent.is_dir():
        raise InputError(f"{base} cannot be made: the folder {base.parent} is not there; make it first")
    return base / begun.strftime("%Y-%m-%d_%H-%M-%S")


def open_store(folder: Path | None) -> ConversationStore:
    """Where turns are kept, by default in the user's own data folder."""
    from ..voice.store import ConversationStore

    return ConversationStore(None if folder is None else folder / STORE_FILE)


def model_name(bundle: Path) -> str:
    """What a bundle is called on the screen."""
    return "nano" if bundle == DEMO_BUNDLE else bundle.resolve().name
