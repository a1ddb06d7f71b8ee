"""`nearfield talk` without a terminal, with an assistant that tells a script: plain lines, what the options do, and
every mistake, told in one line before anything is loaded."""

from __future__ import annotations

import functools
import importlib.machinery
import io
import os
import re
import sys
from pathlib import Path
from typing import get_args

import pytest
from nearfield.apps.cli import devices, main, talk
from nearfield.apps.cli.common import DEMO_BUNDLE, IMAGE_PIXELS, install_command
from nearfield.apps.cli.devices import Devices
from nearfield.apps.cli.memory import require_fit
from nearfield.apps.voice.patience import Eagerness, Patience
from nearfield.apps.voice.sound_device import DeviceChoice
from nearfield.apps.voice.store import ConversationStore
from nearfield.apps.voice.turn_taking import PushToTalk
from nearfield.errors import NearfieldError
from nearfield.runtime.messages import SYSTEM_PROMPT
from nearfield.runtime.omni import Omni
from nearfield.runtime.session import Device
from talk_stand_ins import HEADSET, SCRIPT, Assistant, find_headset, module_of


class Loaded:
    """A loaded bundle, as far as it is asked here."""

    voices = ("Chelsie", "Ethan")


def load(_path: Path, device: Device, context: int, threads: int) -> Loaded:
    """In place of `Omni.load`."""
    assert (device, context) == ("cpu", 640) or context == 2048
    assert threads == max(1, (os.cpu_count() or 2) // 2)  # a reply's stages work side by side
    return Loaded()


def load_too_early(_path: Path, device: Device, context: int, threads: int) -> None:
    """In place of `Omni.load` where it must not be called."""
    raise AssertionError(f"loaded on {device} for {context} positions and {threads} threads: mistakes come first")


@pytest.fixture
def assistant(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[Assistant]:
    """The stand-in in its place, devices that work, and nothing that is loaded for real."""

    class Fresh(Assistant):
        pass

    module = module_of(Fresh)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(devices, "find_devices", find_headset)
    monkeypatch.setattr(Omni, "load", load)
    monkeypatch.setenv("NEARFIELD_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return Fresh


def exit_code(*argv: str) -> int:
    try:
        return main.main(["talk", *argv])
    except SystemExit as end:
        assert isinstance(end.code, int)
        return end.code


def test_without_a_terminal_there_is_a_line_for_each_event_and_nano_talks(
    assistant: type[Assistant], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code() == 130
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "device: microphone USB Headset, speaker Laptop",
        "state: listening",
        "state: thinking",
        "you: What is seven plus four?",
        "state: speaking",
        "nano: Seven plus four is eleven.",
        "timing: question 1.9 s; answered in 812 ms: 640 ms waiting for silence + 172 ms; "
        "model: first token 45 ms, first sound made 110 ms, from when it was asked",
        "state: idle",
    ]
    assert "\x1b" not in out
    assert err == "nearfield: interrupted\n"
    assert assistant.latest is not None
    assert assistant.latest.calls == ["close"]


def test_the_assistant_is_made_as_asked(assistant: type[Assistant], tmp_path: Path) -> None:
    assert exit_code("--voice", "Ethan", "--system", "Be brief.", "--eagerness", "high", "--transcribe") == 130
    assert assistant.latest is not None
    options = dict(assistant.latest.options)
    assert isinstance(options.pop("store"), ConversationStore)
    assert options == {
        "voice": "Ethan",
        "system": "Be brief.",
        "patience": Patience.of("high"),
        "transcribe": True,
        "complete": None,
        "name": "nano",
        "image_pixels": IMAGE_PIXELS,
    }
    assert (tmp_path / "data" / "conversations.sqlite").is_file()


def test_what_is_not_asked_for_is_as_usual(assistant: type[Assistant]) -> None:
    exit_code()
    assert assistant.latest is not None
    options = assistant.latest.options
    assert (options["voice"], options["system"], options["transcribe"]) == (None, SYSTEM_PROMPT, False)
    assert options["patience"] == Patience.of("medium")


def test_turns_are_kept_where_asked_or_not_at_all(assistant: type[Assistant], tmp_path: Path) -> None:
    exit_code("--data-dir", str(tmp_path / "elsewhere"))
    assert (tmp_path / "elsewhere" / "conversations.sqlite").is_file()
    exit_code("--no-store")
    assert assistant.latest is not None
    assert assistant.latest.options["store"] is None
    assert not (tmp_path / "data").exists()


@pytest.mark.usefixtures("assistant")
def test_a_damaged_file_of_earlier_conversations_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "conversations.sqlite").write_bytes(b"no database" * 1000)
    exit_code()
    assert "note: the file of earlier conversations was damaged and is set aside as " in capsys.readouterr().out


def test_with_save_the_conversation_is_written_at_its_end_and_none_replaces_another(
    assistant: type[Assistant], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code("--save", "talks") == 130
    (folder,) = (tmp_path / "talks").iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", folder.name)
    assert sorted(path.name for path in folder.iterdir()) == ["conversation.txt", "conversation.wav"]
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"saved: {Path('talks') / folder.name / 'conversation.txt'}, ")
    assistant.script = SCRIPT[:2]
    exit_code("--save", "talks")
    assert capsys.readouterr().out.splitlines()[-1] == "nothing was said yet: there is nothing to save"
    assert len(list((tmp_path / "talks").iterdir())) == 1


def test_what_breaks_the_assistant_is_told_and_everything_is_closed(
    assistant: type[Assistant], capsys: pytest.CaptureFixture[str]
) -> None:
    assistant.end = NearfieldError("the ear broke; start again")
    assert exit_code("--save", "talks") == 1
    assert "nearfield: error: the ear broke; start again\n" in capsys.readouterr().err
    assert assistant.latest is not None
    assert assistant.latest.calls == ["close"]
    assert Path("talks").is_dir(), "what was said until then is saved"


@pytest.mark.parametrize(
    "argv",
    [
        ("--eagerness", "extreme"),
        ("--push-to-talk", "always"),
        ("--device", "tpu"),
        ("--context", "0"),
        ("--no-store", "--data-dir", "folder"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(*argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "usage: nearfield talk" in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("nowhere",), "nowhere"),
        (("--voice", "Nobody"), "Nobody"),
        (("--context", "100000000"), "positions"),
        (("--smart-turn", "nowhere.onnx"), "nowhere.onnx is not a file"),
        (("--save", "file"), "--save file is a file; give a folder"),
        (("--save", "no/where"), "the folder no is not there; make it first"),
        (("--push-to-talk", "hold"), "--push-to-talk needs a key, and standard input is no terminal: leave it out"),
        (("--data-dir", "file"), "file"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_mistakes_are_one_line_and_found_before_anything_is_loaded(
    argv: tuple[str, ...],
    message: str,
    assistant: type[Assistant],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(Omni, "load", load_too_early)
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    assert exit_code(*argv) == 1
    err = capsys.readouterr().err
    assert err.startswith("nearfield: error: ")
    assert err.count("\n") == 1
    assert message in err
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"
    assert assistant.latest is None


@pytest.mark.usefixtures("assistant")
def test_without_a_microphone_nothing_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Omni, "load", load_too_early)
    none = Devices([], ["Laptop"], trouble="no microphone found")
    monkeypatch.setattr(devices, "find_devices", {DeviceChoice(): none}.__getitem__)
    assert exit_code() == 1
    assert capsys.readouterr().err == "nearfield: error: no microphone found\n"


@pytest.mark.usefixtures("assistant")
def test_devices_are_asked_for_by_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = list[DeviceChoice]()

    def find(choice: DeviceChoice) -> Devices:
        asked.append(choice)
        return HEADSET

    monkeypatch.setattr(devices, "find_devices", find)
    exit_code("--microphone", "headset", "--speaker", "lap", "--no-echo-cancellation")
    exit_code("--list-devices")
    assert asked == [DeviceChoice("headset", "lap", False), DeviceChoice(None, None, True)]
    assert capsys.readouterr().out.endswith(
        "microphones:\n  USB Headset  (used)\n  Laptop\nspeakers:\n  Laptop  (used)\n"
    )


@pytest.mark.usefixtures("assistant")
def test_a_bundle_that_does_not_fit_is_refused_as_ask_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(talk, "require_fit", functools.partial(require_fit, free={"cpu": 1 << 20}.get))
    with monkeypatch.context() as inner:
        inner.setattr(Omni, "load", load_too_early)
        assert exit_code("--context", "2048") == 1
    err = capsys.readouterr().err
    assert "of main memory at most, 0.00 GiB are free" in err
    assert "to try it anyway: --ignore-memory" in err
    assert exit_code("--context", "2048", "--ignore-memory") == 130


class WithoutRich:
    """Finds no rich, as where it is not installed."""

    @staticmethod
    def find_spec(name: str, *_: object) -> importlib.machinery.ModuleSpec | None:
        if name == "rich":
            raise ModuleNotFoundError("No module named 'rich'", name="rich")
        return None


def test_a_missing_package_is_named_with_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if re.fullmatch(r"rich(\..*)?|nearfield\.apps\.terminal\.screen", name)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("nearfield.apps.terminal.screen", raising=False)
    monkeypatch.setattr(sys, "meta_path", [WithoutRich, *sys.meta_path])
    assert exit_code() == 1
    needed = f"this command needs rich, which is not installed here; {install_command('voice')}"
    assert needed in capsys.readouterr().err


def test_choices_are_those_of_turn_taking() -> None:
    assert get_args(Eagerness) == talk.EAGERNESS
    assert get_args(PushToTalk) == ("off", *talk.PUSH_TO_TALK)


def test_a_model_is_called_by_its_folder() -> None:
    assert talk.model_name(DEMO_BUNDLE) == "nano"
    assert talk.model_name(Path("bundles/omni-3b/")) == "omni-3b"


def test_a_pipe_whose_reader_has_gone_ends_it(assistant: type[Assistant], monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

        def fileno(self) -> int:
            return os.open(os.devnull, os.O_WRONLY)

    monkeypatch.setattr(sys, "stdout", Gone())
    assert exit_code() == 1
    assert assistant.latest is not None
    assert assistant.latest.calls == ["close"]
