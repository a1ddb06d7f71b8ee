"""`nearfield talk` as a process: how to start it, and what it prints, line by line."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from audio_rig import AudioRig

_TALK = [sys.executable, "-c", "from nearfield.apps.cli.main import main; raise SystemExit(main())", "talk"]


class Lines:
    """What a process prints, line by line, as it comes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.seen: list[str] = []
        self.pid = process.pid
        self._process = process
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.seen.append(line.rstrip())

    def wait(self, pattern: str, since: int, seconds: float = 60.0) -> str:
        """The first line since number `since` that holds the pattern."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for line in self.seen[since:]:
                if re.search(pattern, line):
                    return line
            time.sleep(0.02)
        raise AssertionError(f"no line like {pattern!r} in {self.seen[since:]}")


@contextmanager
def talking(
    rig: AudioRig, *options: str, within: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> Iterator[Lines]:
    """`nearfield talk nano` on the rig's devices; `within` runs it, `environment` goes before the rig's."""
    process = subprocess.Popen(
        [*within, *_TALK, "nano", *options], env={**rig.environment, **(environment or {})}, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        lines = Lines(process)
        lines.wait("^device: microphone", 0)
        yield lines
    finally:
        process.terminate()
        process.wait(timeout=20)
        assert process.stdout is not None
        process.stdout.close()
