"""The command line as a user meets it: help, usage errors, exit codes, and errors without tracebacks."""

from __future__ import annotations

import errno
import importlib
import os
import subprocess
import sys
from collections import Counter
from importlib.metadata import entry_points
from pathlib import Path
from typing import get_args

import pytest
from nearfield import __version__
from nearfield.apps.cli import ask, common, main, verify
from nearfield.errors import BundleError, InputError, NearfieldError
from nearfield.runtime.session import Device

COMMANDS = ("talk", "export", "quantize", "build", "verify", "inspect", "ask", "demo", "doctor")


def exit_code(*argv: str) -> int:
    """The exit code of the command line, whether it returns or argparse ends it."""
    try:
        return main.main(argv)
    except SystemExit as end:
        assert isinstance(end.code, int)
        return end.code


def test_the_installed_command_is_this_one() -> None:
    (entry,) = entry_points(group="console_scripts", name="nearfield")
    assert entry.load() is main.main


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--version") == 0
    assert capsys.readouterr().out == f"nearfield {__version__}\n"


def test_help_says_what_a_bundle_is_and_what_to_do_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--help") == 0
    text = capsys.readouterr().out
    assert "bundle: a directory" in text
    assert text.index("nearfield doctor") < text.index("nearfield demo") < text.index("nearfield export")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(command, "--help") == 0
    text = capsys.readouterr().out
    assert "example" in text
    assert f"  nearfield {command}" in text


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from nearfield.apps.cli.main import build_parser\n"
        "build_parser().format_help()\n"
        "print([name for name in ('numpy', 'onnxruntime', 'tokenizers', 'msgspec', 'tqdm') if name in sys.modules])\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ("sing",),
        ("export", "checkpoint"),
        ("export", "checkpoint", "-o", "bundle", "--bits", "3"),
        ("export", "checkpoint", "-o", "bundle", "--dialect", "onnx"),
        ("verify", "bundle"),
        ("inspect",),
        ("ask", "bundle"),
        ("ask", "bundle", "--text", "hello", "--device", "tpu"),
        ("ask", "bundle", "--text", "hello", "--max-tokens", "0"),
        ("ask", "bundle", "--text", "hello", "--seed", "-1"),
        ("ask", "bundle", "--text", "hello", "--no-speech", "--voice", "Ethan"),
        ("export", "checkpoint", "-o", "bundle", "--bits", "16", "--dtype", "float32"),
        ("export", "checkpoint", "-o", "bundle", "--bits", "32", "--dtype", "float16"),
        ("export", "checkpoint", "-o", "bundle", "--bits", "32", "--accuracy-level", "4"),
        ("demo", "--seed", "x"),
        ("doctor", "now"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2_with_the_usage_on_stderr(
    argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(*argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "usage: nearfield" in err


def test_an_error_is_one_line_on_stderr_and_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("inspect", str(tmp_path)) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"nearfield: error: {tmp_path} is a directory without manifest.json")
    assert err.count("\n") == 1


@pytest.mark.parametrize("argv", [("--debug", "inspect"), ("inspect", "--debug")], ids=" ".join)
def test_debug_shows_the_error_itself(argv: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        main.main([*argv, str(tmp_path)])


@pytest.mark.parametrize("argv", [("ask", "bundle", "--text", "hello", "--out"), ("demo", "--out")], ids=" ".join)
def test_a_place_the_answer_cannot_go_is_refused_before_any_work(
    argv: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(*argv, str(tmp_path / "nowhere" / "reply.wav")) == 1
    assert "nowhere" in capsys.readouterr().err


def test_numbers_are_asked_for_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("ask", "bundle", "--text", "hello", "--max-tokens", "many") == 2
    assert "--max-tokens: expected a whole number above 0, found 'many'" in capsys.readouterr().err
    assert exit_code("ask", "bundle", "--text", "hello", "--seed", "x") == 2
    assert "--seed: expected a whole number of 0 or more, found 'x'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("outputs", "inputs", "message"),
    [
        ({"--out": "a.wav", "--json": "./a.wav"}, {}, "--json and --out are the same file"),
        ({"--out": "question.wav"}, {"--audio": "question.wav"}, "--out and --audio are the same file"),
        ({"--json": "folder"}, {}, "folder cannot be written .it is a folder, not a file"),
        ({"--out": "nowhere/a.wav"}, {}, "the folder nowhere is not there"),
        ({"--out": os.devnull}, {}, "it is a device or a pipe"),
    ],
)
def test_outputs_that_would_destroy_or_fail_are_refused(
    outputs: dict[str, str], inputs: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("question.wav").write_bytes(b"sound")
    paths = [{option: Path(path) for option, path in files.items()} for files in (outputs, inputs)]
    with pytest.raises(InputError, match=message):
        common.check_outputs(*paths)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "question.wav"]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder in which nobody, not even root, can write")
def test_a_folder_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(InputError, match=r"/proc/a\.wav cannot be written"):
        common.check_outputs({"--out": Path("/proc/a.wav")}, {})


def test_outputs_of_their_own_are_accepted_and_not_made(tmp_path: Path) -> None:
    common.check_outputs({"--out": tmp_path / "a", "--json": None}, {"--audio": tmp_path / "b", "--image": None})
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_system_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def full() -> int:
        raise OSError(errno.ENOSPC, "No space left on device", "bundle")

    assert main.guarded(full, debug=False) == 1
    assert capsys.readouterr().err == "nearfield: error: [Errno 28] No space left on device: 'bundle'\n"
    with pytest.raises(OSError, match="No space"):
        main.guarded(full, debug=True)


NARROW = """
import subprocess, sys
command = [sys.executable, "-m", "nearfield.apps.cli.main", *sys.argv[1:]]
process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
process.stdout.close()
print(process.stderr.read(), end="")
sys.exit(process.wait())
"""


def without_reader(*argv: str) -> subprocess.CompletedProcess[str]:
    """Run a command whose standard output nobody reads."""
    return subprocess.run([sys.executable, "-c", NARROW, *argv], capture_output=True, text=True, check=False)


def test_a_reader_that_has_gone_ends_a_command_quietly() -> None:
    ended = without_reader("inspect", str(common.DEMO_BUNDLE))
    assert (ended.returncode, ended.stdout) == (1, "")


def test_speech_is_written_though_nobody_reads_the_text(tmp_path: Path) -> None:
    speech = tmp_path / "reply.wav"
    options = ["--max-tokens", "4", "--max-seconds", "1", "--out", str(speech)]
    ended = without_reader("ask", str(common.DEMO_BUNDLE), "--text", "hello", *options)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stdout
    assert "BrokenPipe" not in ended.stdout
    assert speech.stat().st_size > 1000


def test_closed_streams_are_no_error() -> None:
    code = (
        "import sys; sys.stdout = sys.stderr = None\n"
        "from nearfield.apps.cli.main import main\n"
        "sys.exit(main(['inspect', sys.argv[1]]))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(common.DEMO_BUNDLE)], check=False).returncode == 0


def test_paths_to_type_are_quoted() -> None:
    assert common.quoted(Path("omni-3b")) == "omni-3b"
    assert common.quoted(Path("my bundle")) in ("'my bundle'", '"my bundle"')


def test_verify_says_by_what_its_outputs_pass() -> None:
    assert verify.verdict(Counter({"ok": 7})) == "all outputs are within their limits"
    starred = verify.verdict(Counter({"ok": 5, "ok*": 2})).splitlines()
    assert starred[0].startswith("* over the limit")
    assert starred[-1] == "all outputs pass, 5 within their limits and 2 by the reference (*)"
    assert verify.verdict(Counter({"ok": 5, "MISS": 2})) == "2 of 7 outputs miss"


def test_exporting_what_is_no_checkpoint_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("export", str(tmp_path), "-o", str(tmp_path / "bundle")) == 1
    assert str(tmp_path) in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()


def test_a_missing_extra_is_named_with_the_command_that_installs_it() -> None:
    message = r'needs onnx_no_such, .* in a clone of the repository: pip install "\.\[export\]"'
    with pytest.raises(NearfieldError, match=message), common.needs_extra("export"):
        importlib.import_module("onnx_no_such")


def test_a_package_that_cannot_load_is_explained() -> None:
    with (
        pytest.raises(NearfieldError, match=r"cannot be loaded \(operator nms does not exist\)"),
        common.needs_extra("x"),
    ):
        raise ModuleNotFoundError("Could not import module") from RuntimeError("operator nms does not exist")


def test_a_fault_in_nearfield_is_not_taken_for_a_missing_extra() -> None:
    with pytest.raises(ModuleNotFoundError), common.needs_extra("export"):
        importlib.import_module("nearfield.no_such")


def test_interrupting_is_exit_code_130(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    assert main.guarded(interrupted, debug=False) == 130
    assert capsys.readouterr().err == "nearfield: interrupted\n"


def test_devices_offered_are_those_of_the_runtime() -> None:
    assert get_args(Device) == ask.DEVICES


def test_sizes_and_tables_read_well() -> None:
    assert [common.size(n) for n in (0, 999, 1000, 12_340_000, 3_000_000_000)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "12.3 MB",
        "3.00 GB",
    ]
    assert common.table([("a", "1"), ("bcd", "20")], right=frozenset({1})) == "a     1\nbcd  20"


def test_nano_names_the_bundle_in_the_package_and_everything_else_a_directory() -> None:
    assert common.bundle_path("nano") == common.DEMO_BUNDLE
    assert common.bundle_path("./nano") == Path("nano")
    assert common.bundle_path("omni-3b") == Path("omni-3b")


def test_the_context_in_the_help_is_the_one_the_runtime_has() -> None:
    from nearfield.runtime import parts

    assert parts.CONTEXT == common.CONTEXT
