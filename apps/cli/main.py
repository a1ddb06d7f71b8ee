"""The `nearfield` command: arguments in, a command's function called, an exit code out.

Exit codes: 0 all well; 1 an error Nearfield knows how to explain, or a check that found a fault; 2 wrong usage;
130 interrupted. Everything heavy is imported inside the commands, so that help and mistakes in usage are instant.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ... import __version__
from ...errors import NearfieldError
from . import ask, build, demo, doctor, export, inspect, quantize, talk, verify
from .common import Command

_COMMANDS: tuple[Command, ...] = (export, quantize, build, verify, inspect, ask, talk, demo, doctor)

_DESCRIPTION = """\
Qwen2.5-Omni on your own machine: it listens, looks, thinks and speaks, offline, without torch.

Nearfield answers from a bundle: a directory with the model as ONNX graphs (hearing, sight, language, speech), its
tokenizer and its voices. You make one, once, from a checkpoint you have downloaded (a directory of safetensors files);
after that nothing but the bundle is needed."""

_EPILOG = """\
what to do first:
  nearfield doctor                                      is everything here that is needed?
  nearfield demo                                        a conversation with Nano, the tiny model that ships with it
  nearfield talk                                        speak with it yourself (needs: pip install ".[voice]")
  nearfield export Qwen2.5-Omni-3B -o omni-3b           make a bundle (needs: pip install ".[export]")
  nearfield ask omni-3b --audio question.wav --out reply.wav

nearfield COMMAND --help says more about each command."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line; parsing sets `run`, the chosen command's function."""
    parser = argparse.ArgumentParser(
        prog="nearfield",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"nearfield {__version__}")
    debug_help = "show the traceback of an error, for a report"
    parser.add_argument("--debug", action="store_true", help=debug_help)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=debug_help)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    for command in _COMMANDS:
        subparser = commands.add_parser(
            command.NAME,
            parents=[common],
            help=command.SUMMARY,
            description=command.DESCRIPTION,
            epilog=command.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (by default the process's own) and return its exit code."""
    _open_closed_streams()
    _print_anything(sys.stdout, sys.stderr)
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help(sys.stderr)
        return 2
    return guarded(lambda: int(args.run(args)), debug=args.debug)


def guarded(command: Callable[[], int], *, debug: bool) -> int:
    """Run a command and turn how it ends into an exit code; `debug` lets errors through instead of telling them."""
    try:
        code = command()
        sys.stdout.flush()  # here, where a failure is still told
        return code
    except KeyboardInterrupt:
        print("nearfield: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read the output has gone, as `head` does
        _discard_output()
        return 1
    except (NearfieldError, OSError) as error:
        if debug:
            raise
        print(f"nearfield: error: {error}", file=sys.stderr)
        return 1


def _open_closed_streams() -> None:
    """A process may be started without standard output or error; what is written to them is then dropped."""
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  # open as long as the process runs
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115


def _discard_output() -> None:
    """Drop what is still to be written, or Python would fail on it once more while it shuts down."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_anything(*streams: object) -> None:
    """A reply can be in any script; where the terminal's encoding lacks a letter, show its code instead of failing."""
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    sys.exit(main())
