"""`nearfield talk` as a process: how to start it, and what it prints, line by line."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time

TALK = [sys.executable, "-c", "from nearfield.apps.cli.main import main; raise SystemExit(main())", "talk"]


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
