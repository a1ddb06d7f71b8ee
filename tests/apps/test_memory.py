"""`nearfield inspect` shows the memory plan; `nearfield ask` refuses one that does not fit before it loads."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from nearfield.apps.cli import memory
from nearfield.apps.cli.common import DEMO_BUNDLE
from nearfield.apps.cli.main import main
from nearfield.errors import InputError
from nearfield.runtime.bundle import Bundle
from nearfield.runtime.memory_plan import MemoryPlanner, Workload
from nearfield.runtime.omni import Omni

QUIET = ("--no-speech", "--max-tokens", "8")


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how much main memory this machine says is free, and hides any GPU."""

    def be(available: int) -> None:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=available))

    monkeypatch.setattr(shutil, "which", lambda _: None)
    return be


@pytest.fixture
def never_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading anything is a failure."""

    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("the bundle was loaded")

    monkeypatch.setattr(Omni, "load", load)


def planner() -> MemoryPlanner:
    return MemoryPlanner.of(Bundle.open(DEMO_BUNDLE))


def needed(**workload: Any) -> int:
    return planner().plan(Workload(**workload)).needed_bytes("host")


def test_inspect_prints_the_plan_of_the_context_and_video_asked_for(
    capsys: pytest.CaptureFixture[str], free: Callable[[int], None]
) -> None:
    free(100 << 30)
    assert main(["inspect", str(DEMO_BUNDLE), "--context", "12000", "--video-seconds", "8"]) == 0
    text = capsys.readouterr().out
    plan = planner().plan(Workload(context=12_000, video_seconds=8.0))
    for line in plan.lines:
        [row] = [row for row in text.splitlines() if re.match(rf"{line.name} +(main|GPU) ", row)]
        assert memory.gib(line.total_bytes) in row
    assert f"{plan.video_positions:,} positions" in text
    assert f"{12_000 - plan.video_positions:,} left" in text
    assert f"{memory.gib(plan.needed_bytes('host'))} needed at most, 100.00 GiB free: it fits" in text


def test_inspect_says_of_the_default_context_that_it_does_not_fit(
    capsys: pytest.CaptureFixture[str], free: Callable[[int], None]
) -> None:
    free(50 << 20)
    assert main(["inspect", str(DEMO_BUNDLE)]) == 0
    text = capsys.readouterr().out
    assert "8,192 positions of context" in text
    assert "0.05 GiB free: it does NOT fit" in text


def test_inspect_of_a_gpu_tells_its_memory_from_the_rest_and_what_is_assumed(
    capsys: pytest.CaptureFixture[str], free: Callable[[int], None]
) -> None:
    free(100 << 30)
    assert main(["inspect", str(DEMO_BUNDLE), "--device", "cuda"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"GPU memory: \d+\.\d\d GiB needed at most; how much is free is not known here", text)
    assert re.search(r"main memory: \d+\.\d\d GiB needed at most, 100.00 GiB free: it fits", text)
    assert "assumed, never measured" in text


def test_inspect_of_a_context_too_small_for_the_video_names_one_that_would_do(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["inspect", str(DEMO_BUNDLE), "--video-seconds", "10"]) == 1
    error = capsys.readouterr().err
    [context] = re.findall(r"use a context of (\d+) \(--context N, --video-seconds S\)", error)
    assert main(["inspect", str(DEMO_BUNDLE), "--video-seconds", "10", "--context", context]) == 0


@pytest.mark.parametrize("wrong", [("--video-seconds", "-1"), ("--video-seconds", "long"), ("--context", "0")])
def test_inspect_asks_for_numbers_in_words(wrong: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["inspect", str(DEMO_BUNDLE), *wrong])
    assert f"{wrong[0]}: expected a" in capsys.readouterr().err


@pytest.mark.usefixtures("never_loaded")
def test_ask_refuses_a_plan_that_does_not_fit_and_says_what_to_change(
    capsys: pytest.CaptureFixture[str], free: Callable[[int], None]
) -> None:
    silent = {"image_pixels": 0, "codes": 0}
    available = needed(context=4096, **silent)
    free(available)
    assert main(["ask", str(DEMO_BUNDLE), "--text", "Hello.", *QUIET, "--context", "32768"]) == 1
    error = capsys.readouterr().err
    assert f"{memory.gib(needed(context=32_768, **silent))} of main memory" in error
    assert f"{memory.gib(available)} are free" in error
    assert re.search(r"the largest part is (thinker|talker) with \d\.\d\d GiB \(mostly work\)", error)
    assert "--context 4096" in error, "the largest that fits"
    assert "--device cuda" in error
    assert "--dtype float32" in error, "nano's types are float16"
    assert "to try it anyway: --ignore-memory" in error
    assert error.count("\n") == 1


def test_ask_takes_the_context_it_proposed(capsys: pytest.CaptureFixture[str], free: Callable[[int], None]) -> None:
    free(needed(context=4096, image_pixels=0, codes=0))
    assert main(["ask", str(DEMO_BUNDLE), "--text", "Hello.", *QUIET, "--context", "4096"]) == 0
    assert capsys.readouterr().out.strip() == "Hello, I am Nano."


def test_ask_can_be_told_to_try_anyway(capsys: pytest.CaptureFixture[str], free: Callable[[int], None]) -> None:
    free(1000)
    assert main(["ask", str(DEMO_BUNDLE), "--text", "Hello.", *QUIET, "--ignore-memory"]) == 0
    assert capsys.readouterr().out.strip() == "Hello, I am Nano."


@pytest.mark.usefixtures("never_loaded")
def test_a_voice_counts(free: Callable[[int], None], tmp_path: Path) -> None:
    free(needed(context=1024, image_pixels=0, codes=0) + (1 << 20))
    asked = ["ask", str(DEMO_BUNDLE), "--text", "Hello.", "--context", "1024"]
    assert main([*asked, "--out", str(tmp_path / "reply.wav")]) == 1
    with pytest.raises(AssertionError, match="loaded"):
        main([*asked, "--no-speech"])


def refusal(workload: Workload, **available: int | None) -> str:
    """The message with which a workload is refused on nano where so much is free."""
    with pytest.raises(InputError) as error:
        memory.require_fit(planner(), workload, lambda device: available[device])
    return str(error.value)


def test_where_no_context_fits_none_is_proposed() -> None:
    message = refusal(Workload(), cpu=1000)
    assert "--context" not in message
    assert "another device" in message


def test_a_gpu_that_is_too_small_is_told_apart_from_main_memory() -> None:
    workload = Workload(device="cuda", context=4096)
    message = refusal(workload, cpu=100 << 30, cuda=1 << 30)
    assert "of GPU memory at most, 1.00 GiB are free" in message
    assert "--device cpu" in message
    memory.require_fit(planner(), workload, lambda device: 100 << 30 if device == "cpu" else None)


def test_a_shorter_video_is_proposed_only_where_one_fits() -> None:
    workload = Workload(context=20_000, video_seconds=20.0)
    without = planner().plan(replace(workload, video_seconds=0.0)).needed_bytes("host")
    assert "a shorter video" in refusal(workload, cpu=without)
    assert "a shorter video" not in refusal(workload, cpu=without - 1)


def test_the_free_memory_of_one_gpu_is_known_and_of_several_not() -> None:
    assert memory.parse_free("23456\n") == 23_456 << 20
    assert memory.parse_free("23456\n1000\n") is None
    assert memory.parse_free("[N/A]\n") is None
    assert memory.parse_free("") is None


def test_free_main_memory_is_that_of_this_machine() -> None:
    free = memory.available_bytes("cpu")
    assert free is not None
    assert 0 < free <= psutil.virtual_memory().total


def test_without_nvidia_smi_the_gpus_memory_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert memory.available_bytes("cuda") is None
