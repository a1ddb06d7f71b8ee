"""`nearfield talk` on a real terminal (a pty), in a process of its own: the screen, keys, and every way it can end."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import talk_stand_ins

ON_A_TERMINAL = """
import sys
sys.path.insert(0, sys.argv[1])
import talk_stand_ins
talk_stand_ins.install(getattr(talk_stand_ins, sys.argv[2]))
from nearfield.apps.cli.main import main
sys.exit(main(["talk", "--no-store", *sys.argv[3:]]))
"""
TESTS = Path(talk_stand_ins.__file__).parent


class Talk:
    """The command on a terminal of its own, in a process of its own."""

    def __init__(self, folder: Path, *argv: str, assistant: str = "UntilQuit", term: str = "xterm-256color") -> None:
        self._person, program = pty.openpty()
        self._program = program
        self.before = termios.tcgetattr(program)
        environment = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", ON_A_TERMINAL, str(TESTS), assistant, *argv],
            stdin=program,
            stdout=program,
            stderr=program,
            cwd=folder,
            env={**environment, "TERM": term},
            start_new_session=True,
            preexec_fn=lambda: own_terminal(program),
        )
        self.seen = ""

    def read_until(self, text: str, timeout_s: float = 60.0) -> None:
        """Read what reaches the terminal until `text` is there."""
        deadline = time.monotonic() + timeout_s
        while text not in self.seen:
            assert time.monotonic() < deadline, f"{text!r} never came: {self.seen[-3000:]!r}"
            assert self.process.poll() is None, f"it ended: {self.seen[-3000:]!r}"
            self._read(0.1)

    def press(self, keys: bytes) -> None:
        os.write(self._person, keys)

    def wait(self) -> int:
        """Read to the end; the exit code."""
        deadline = time.monotonic() + 60
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it does not end: {self.seen[-3000:]!r}"
            self._read(0.1)
        self._read(0.1)
        return self.process.returncode

    def after(self) -> list[Any]:
        """The terminal's settings now."""
        return termios.tcgetattr(self._program)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._person)
        os.close(self._program)

    def _read(self, timeout_s: float) -> None:
        while select.select([self._person], [], [], timeout_s)[0]:
            self.seen += os.read(self._person, 65536).decode(errors="replace")
            timeout_s = 0.0


def own_terminal(program: int) -> None:
    """In the new process: make the terminal its own, so that Ctrl-C reaches it."""
    fcntl.ioctl(program, termios.TIOCSCTTY, 0)


@pytest.fixture
def terminals() -> Iterator[list[Talk]]:
    """Those that a test begins, ended afterwards in any case."""
    begun: list[Talk] = []
    yield begun
    for each in begun:
        each.close()


ENTER, LEAVE = "\x1b[?1049h", "\x1b[?1049l"


def test_on_a_terminal_there_is_a_screen_with_keys_and_afterwards_all_is_as_before(
    tmp_path: Path, terminals: list[Talk]
) -> None:
    talk = Talk(tmp_path)
    terminals.append(talk)
    talk.read_until("Seven plus four is eleven.")
    talk.read_until("answered in 812 ms")
    talk.press(b"m")
    talk.read_until("Muted")
    talk.press(b"q")
    assert talk.wait() == 0
    screen, _, after = talk.seen.rpartition(LEAVE)
    assert screen.startswith("loading nano") or ENTER in screen
    assert "a library is unhappy" not in screen, "it stood across the screen"
    assert "a library is unhappy" in after
    assert talk.after() == talk.before


def test_ctrl_c_ends_it_with_130_and_what_was_said_saved(tmp_path: Path, terminals: list[Talk]) -> None:
    talk = Talk(tmp_path, "--save", "talks")
    terminals.append(talk)
    talk.read_until("Seven plus four is eleven.")
    talk.press(b"\x03")
    assert talk.wait() == 130
    after = talk.seen.rpartition(LEAVE)[2]
    assert "saved: talks" in after
    assert "nearfield: interrupted" in after
    assert "Traceback" not in after
    assert talk.after() == talk.before


def test_what_breaks_it_is_told_after_the_screen(tmp_path: Path, terminals: list[Talk]) -> None:
    talk = Talk(tmp_path, assistant="Breaks")
    terminals.append(talk)
    assert talk.wait() == 1
    assert "nearfield: error: the ear broke" in talk.seen.rpartition(LEAVE)[2]
    assert talk.after() == talk.before


def test_push_to_talk_is_there_where_keys_are(tmp_path: Path, terminals: list[Talk]) -> None:
    talk = Talk(tmp_path, "--push-to-talk", "toggle")
    terminals.append(talk)
    talk.read_until("press SPACE and speak")
    talk.press(b"q")
    assert talk.wait() == 0


def test_a_terminal_that_can_only_write_lines_gets_lines_and_has_keys(tmp_path: Path, terminals: list[Talk]) -> None:
    talk = Talk(tmp_path, term="dumb")
    terminals.append(talk)
    talk.read_until("nano: Seven plus four is eleven.")
    talk.press(b"q")
    assert talk.wait() == 0
    assert "\x1b" not in talk.seen


def test_a_terminal_that_is_closed_ends_it(tmp_path: Path, terminals: list[Talk]) -> None:
    talk = Talk(tmp_path)
    terminals.append(talk)
    talk.read_until("Seven plus four is eleven.")
    talk.press(b"\x04")  # as Ctrl-D; a hang-up would end the process before it could do anything
    assert talk.wait() == 0
    assert talk.after() == talk.before


def test_ending_the_process_from_outside_is_not_in_the_way_of_anything(tmp_path: Path, terminals: list[Talk]) -> None:
    talk = Talk(tmp_path)
    terminals.append(talk)
    talk.read_until("Seven plus four is eleven.")
    talk.process.send_signal(signal.SIGTERM)
    assert talk.wait() == -signal.SIGTERM
