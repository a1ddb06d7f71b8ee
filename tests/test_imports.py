"""What running a bundle loads and does not load, and that it works without a network; each in a process of its own.

(Which folder imports which is import-linter's part: `make check`.)
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nearfield
import pytest

HEAVY = ("torch", "torchvision", "transformers", "accelerate", "onnx", "onnx_ir", "onnxscript")
"""None of these may be loaded to run a bundle."""

ANSWER = """
import sys
from nearfield.apps.cli.main import main
code = main(["demo", "--no-play", "--out", sys.argv[1] + "/replies", "--json", sys.argv[1] + "/demo.json"])
print("heavy:", [name for name in sys.argv[2].split(",") if name in sys.modules])
sys.exit(code)
"""

IMPORT_ALL = """
import importlib, pkgutil, sys
import nearfield.runtime
names = [module.name for module in pkgutil.walk_packages(nearfield.runtime.__path__, "nearfield.runtime.")]
for name in names:
    importlib.import_module(name)
print("modules:", len(names))
print("heavy:", [name for name in sys.argv[1].split(",") if name in sys.modules])
"""


def python(*argv: str, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run the test environment's Python, with `before` in front of it."""
    return subprocess.run([*before, sys.executable, *argv], capture_output=True, text=True, timeout=120, check=False)


def test_importing_the_whole_runtime_loads_nothing_heavy() -> None:
    answer = python("-c", IMPORT_ALL, ",".join(HEAVY))
    assert answer.returncode == 0, answer.stderr
    modules, heavy = answer.stdout.splitlines()
    assert int(modules.removeprefix("modules: ")) >= 15, "the walk over the package found too little"
    assert heavy == "heavy: []"


def test_every_public_name_is_there_and_loaded_only_when_asked_for() -> None:
    code = (
        "import sys, nearfield; assert 'onnxruntime' not in sys.modules; "
        "print(all(getattr(nearfield, name) is not None for name in nearfield.__all__), 'onnxruntime' in sys.modules)"
    )
    answer = python("-c", code)
    assert answer.stdout.split() == ["True", "True"], answer.stderr
    assert not hasattr(nearfield, "no_such_name")


def test_answering_a_spoken_question_loads_nothing_heavy(tmp_path: Path) -> None:
    answer = python("-c", ANSWER, str(tmp_path), ",".join(HEAVY))
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines()[-1] == "heavy: []"
    turns = json.loads((tmp_path / "demo.json").read_text(encoding="utf-8"))["turns"]
    assert all(turn["audio_seconds"] > 0 for turn in turns)


def _without_network() -> tuple[str, ...]:
    """The command that takes the network away, or a skip with the reason why it cannot."""
    unshare = shutil.which("unshare")
    if sys.platform != "linux" or unshare is None:
        pytest.skip("network namespaces are a thing of Linux, reached through util-linux's unshare")
    command = (unshare, "-n") if os.geteuid() == 0 else (unshare, "-r", "-n")
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine does not allow a new network namespace")
    return command


def test_answering_a_spoken_question_works_without_a_network(tmp_path: Path) -> None:
    before = _without_network()
    probe = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=2)"
    assert "unreachable" in python("-c", probe, before=before).stderr, "there is a network where none should be"
    answer = python("-c", ANSWER, str(tmp_path), ",".join(HEAVY), before=before)
    assert answer.returncode == 0, answer.stderr
    assert (tmp_path / "replies" / "reply-3.wav").stat().st_size > 1000
