"""`python -m nearfield.nano [STAGE …]`: make nano from nothing, or run some of its stages.

A stage that is finished only says so, and one that was interrupted goes on from its last state: to make something
again, delete its files in nano/build/. The whole takes hours, so stages that need nothing of each other run side by
side, two at a time, each on half of the processor's cores; the last long ones have both halves, in two processes.
"""

from __future__ import annotations

import importlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import NearfieldError
from .training import device

_SIDE_BY_SIDE = 2
_LOOK_EVERY_S = 0.5


@dataclass(frozen=True)
class Stage:
    """One step of the making: what it is called, the function that does it, and the stages it builds on.

    With ``shared``, ``torchrun`` deals it to all the processes there may be at a time.
    """

    name: str
    function: str
    needs: tuple[str, ...] = ()
    shared: bool = False

    @property
    def processes(self) -> int:
        """How many it takes: on a GPU one is enough."""
        return _SIDE_BY_SIDE if self.shared and device().type == "cpu" else 1

    @property
    def command(self) -> list[str]:
        """What runs it."""
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.processes}"]
        return [sys.executable, *(torchrun if self.processes > 1 else []), "-m", __package__ or "", self.name]


STAGES = (  # of those that could be next, the first is: so the longest way to the end comes first
    Stage("recordings", "recordings:recordings_stage"),
    Stage("text", "read:text_stage"),
    Stage("hear", "hear:hear_stage", ("recordings", "text")),
    Stage("reason", "reason:reason_stage", ("text",)),
    Stage("see", "see:see_stage", ("text",)),
    Stage("understand", "understand:understand_stage", ("hear", "reason", "see"), shared=True),
    Stage("codec", "codec:train_codec"),
    Stage("talker", "talker:talker_stage", ("codec", "reason")),
    Stage("dit", "dit:dit_stage", ("codec",)),
    Stage("vocoder", "vocoder:vocoder_stage", ("codec",)),
    Stage("talker-final", "talker:talker_final_stage", ("talker", "understand"), shared=True),
    Stage("assemble", "assemble:assemble_stage", ("talker-final", "dit", "vocoder")),
    Stage("calibration", "calibration:main", ("recordings",)),
    Stage("export", "assemble:export_stage", ("assemble", "calibration")),
    Stage("heldout", "heldout:main", ("recordings",)),
    Stage("evaluate", "evaluate:main", ("export", "heldout")),
    Stage("card", "card:main", ("evaluate",)),
)
RESTORE = Stage("restore", "restore:restore_stage", ("recordings",))
"""No part of the whole: where nano/build is lost, all stages of the shipped checkpoint count as finished again."""


def main(names: list[str]) -> int:
    """Run the stages named, or all; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    known = {stage.name: stage for stage in (*STAGES, RESTORE)}
    if unknown := [name for name in names if name not in known]:
        print(f"no stage is called {unknown[0]!r}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    try:
        if len(names) > 1:  # one after the other, each in a process of its own: it must come to its imports first
            return max(subprocess.run(known[name].command, check=False).returncode for name in names)
        return _run(known[names[0]]) if names else _run_all()
    except NearfieldError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _run(stage: Stage) -> int:
    """Run a stage in this process; returns its exit code."""
    module, function = stage.function.split(":")
    work: Callable[[], object] = getattr(importlib.import_module(f".{module}", __package__), function)
    started = time.monotonic()
    code = work()
    print(f"{stage.name}: {(time.monotonic() - started) / 60:.1f} minutes", flush=True)
    return code if isinstance(code, int) else 0


def _run_all() -> int:
    """Run every stage in a process of its own once what it needs is done; stops at the first that fails."""
    threads = str(max(1, (os.cpu_count() or 2) // _SIDE_BY_SIDE))
    known = {stage.name: stage for stage in STAGES}
    waiting, running, done = list(STAGES), dict[str, subprocess.Popen[bytes]](), set[str]()
    missed = 0
    try:
        while waiting or running:
            for stage in [stage for stage in waiting if done.issuperset(stage.needs)]:
                if sum(known[name].processes for name in running) + stage.processes > _SIDE_BY_SIDE:
                    break
                running[stage.name] = subprocess.Popen(stage.command, env={**os.environ, "OMP_NUM_THREADS": threads})
                waiting.remove(stage)
            time.sleep(_LOOK_EVERY_S)
            for name in [name for name, process in running.items() if process.poll() is not None]:
                code: int = running.pop(name).returncode
                if name == "evaluate":  # a model that misses a limit still gets its card
                    missed = code
                elif code:
                    print(f"stage {name} failed; its last lines above say why", file=sys.stderr)
                    return 1
                done.add(name)
        return missed
    finally:
        for process in running.values():
            process.terminate()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
