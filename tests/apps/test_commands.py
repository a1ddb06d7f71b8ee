"""The commands at work: export, inspect and verify on tiny checkpoints, verify, ask and demo on nano."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import soundfile
import soxr
from checkpoints import SMALL_3B, write_checkpoint
from nearfield.apps.cli.common import DEMO_BUNDLE, DEMO_QUESTIONS
from nearfield.apps.cli.main import main
from nearfield.apps.cli.turn import Reply, cuts
from nearfield.apps.cli.verify import mark
from nearfield.runtime.bundle import Bundle
from nearfield.runtime.events import TextStop, Timing, TurnEnd
from nearfield.runtime.images import read_image
from nearfield.runtime.manifest import KVCache
from nearfield.runtime.memory_plan import cache_bytes
from nearfield.runtime.talker import SpeechStop


@pytest.fixture(scope="module")
def bundle(checkpoint_3b: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An INT4 bundle of the 3B-shaped checkpoint, made by the command."""
    path = tmp_path_factory.mktemp("bundle") / "small"
    assert main(["export", str(checkpoint_3b), "-o", str(path), "--dtype", "float32"]) == 0
    return path


def test_export_makes_what_its_options_say(checkpoint_3b: Path, tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    options = ["--bits", "4", "--dtype", "float16", "--dialect", "standard", "--accuracy-level", "1"]
    assert main(["export", str(checkpoint_3b), "-o", str(path), *options]) == 0
    thinker = Bundle.open(path).manifest.components["thinker"]
    assert (thinker.dtype, thinker.dialect) == ("float16", "standard")
    assert thinker.quantization is not None
    assert (thinker.quantization.bits, thinker.quantization.accuracy_level) == (4, 1)


def test_export_replaces_a_bundle_only_when_told_to(
    checkpoint_3b: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = shutil.copytree(bundle, tmp_path / "bundle")
    again = ["export", str(checkpoint_3b), "-o", str(target), "--bits", "32"]
    assert main(again) == 1
    assert "overwrite" in capsys.readouterr().err
    assert Bundle.open(target).manifest.components["thinker"].quantization is not None
    assert main([*again, "--overwrite"]) == 0
    assert Bundle.open(target).manifest.components["thinker"].quantization is None


def test_inspect_lists_components_voices_and_limits(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(bundle)]) == 0
    text = capsys.readouterr().out
    manifest = Bundle.open(bundle).manifest
    for name in (*manifest.components, *manifest.voices, f"{manifest.thinker.max_positions:,} positions"):
        assert name in text
    assert "int4 rtn, groups of 128" in text
    assert "up to 30 s a clip" in text  # of the tiny checkpoints
    assert "--check compares all hashes" in text


def test_inspect_check_finds_a_changed_byte(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = shutil.copytree(bundle, tmp_path / "bundle")
    assert main(["inspect", str(path), "--check"]) == 0
    largest = max(path.iterdir(), key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    assert main(["inspect", str(path), "--check"]) == 1
    assert f"{largest.name} is damaged" in capsys.readouterr().err


def test_cache_sizes_are_keys_and_values_of_all_layers() -> None:
    published_3b = KVCache(layers=36, kv_heads=2, head_dim=128)
    assert cache_bytes(published_3b, 1000, 2) == 36_864_000


def test_verify_prints_every_output_and_passes(
    checkpoint_nano: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "bundle"  # not the shipped one: that is calibrated, so its weights are not this checkpoint's
    assert main(["export", str(checkpoint_nano), "-o", str(bundle)]) == 0
    capsys.readouterr()
    assert main(["verify", str(bundle), "--against", str(checkpoint_nano)]) == 0
    lines = capsys.readouterr().out.splitlines()
    for component in Bundle.open(bundle).manifest.components:
        assert any(line.startswith(component) and line.endswith("ok") for line in lines)
    assert lines[-1] == "all outputs are within their limits"


def test_verify_stars_what_passes_only_by_the_reference() -> None:
    from nearfield.export.verify import Row

    row = Row("thinker", "logits", 1e-3, 5e-3, 1e-3, None)
    assert mark(row) == "ok"
    assert mark(replace(row, error=8e-3, reference_error=7e-3)) == "ok*"
    assert mark(replace(row, error=8e-3, reference_error=1e-3)) == "MISS"
    assert mark(replace(row, error=float("nan"))) == "MISS"


def test_verify_prints_no_table_when_there_is_nothing_to_compare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(tmp_path), "--against", str(tmp_path)]) == 1
    assert capsys.readouterr().out == ""


def test_verify_against_another_checkpoint_is_not_a_pass(bundle: Path, checkpoint_7b: Path) -> None:
    assert main(["verify", str(bundle), "--against", str(checkpoint_7b)]) == 1


def test_verify_of_other_weights_misses_and_says_how_many(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_checkpoint(tmp_path / "other", SMALL_3B, seed=2)
    assert main(["verify", str(bundle), "--against", str(other)]) == 1
    _, *rows, verdict = capsys.readouterr().out.splitlines()
    assert rows
    assert all(row.endswith(" MISS") for row in rows)
    assert verdict == f"{len(rows)} of {len(rows)} outputs miss"


def test_ask_writes_text_to_stdout_and_speech_and_timing_to_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    speech, record = tmp_path / "reply.wav", tmp_path / "reply.json"
    question = ["--audio", str(DEMO_QUESTIONS[2].recording), "--image", str(DEMO_QUESTIONS[2].picture)]
    outputs = ["--out", str(speech), "--json", str(record)]
    assert main(["ask", str(DEMO_BUNDLE), *question, "--voice", "Ethan", "--seed", "3", *outputs]) == 0
    out, err = capsys.readouterr()
    assert out.strip() == "A purple star."
    assert str(speech) in err
    said = json.loads(record.read_text(encoding="utf-8"))
    assert (said["stop_reason"], said["speech_stop_reason"]) == ("end", "end")
    info = soundfile.info(speech)
    assert (info.samplerate, info.channels, info.subtype) == (24_000, 1, "PCM_16")
    assert info.duration == pytest.approx(said["audio_seconds"])


def test_ask_cuts_where_it_is_told_to_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    speech, record = tmp_path / "reply.wav", tmp_path / "reply.json"
    limits = ["--max-tokens", "6", "--max-seconds", "1", "--out", str(speech), "--json", str(record)]
    assert main(["ask", str(DEMO_BUNDLE), "--text", "What is thirty four plus twenty seven?", *limits]) == 0
    out, err = capsys.readouterr()
    assert out.strip() == "Thirty four plus twenty seven is"
    assert "text cut by --max-tokens" in err
    assert "speech cut by --max-seconds" in err
    said = json.loads(record.read_text(encoding="utf-8"))
    assert (said["reply_tokens"], said["stop_reason"], said["speech_stop_reason"]) == (6, "max_tokens", "max_codes")
    assert soundfile.info(speech).duration <= 1


def test_ask_without_speech_writes_no_sound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    speech = tmp_path / "reply.wav"
    assert main(["ask", str(DEMO_BUNDLE), "--text", "Hello.", "--no-speech", "--out", str(speech)]) == 0
    assert capsys.readouterr().out.strip() == "Hello, I am Nano."
    assert not speech.exists()


def test_ask_follows_the_system_prompt_it_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    question = ["--audio", str(DEMO_QUESTIONS[0].recording), "--system", "Write down what you hear."]
    assert main(["ask", str(DEMO_BUNDLE), *question, "--no-speech"]) == 0
    assert capsys.readouterr().out.strip() == "What is seven plus four?"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["--text", "hello", "--voice", "Nobody"], "Chelsie, Ethan"),
        (["--text", "hello", "--voice", ""], "Chelsie, Ethan"),
        (["--text", "hello", "--voice", "Nobody", "--context", "999999999"], "Chelsie, Ethan"),  # before loading
        (["--text", "word " * 10_000], "(--context N, --image-pixels N)"),
        (["--audio", "no.wav"], "no.wav is not a sound file Nearfield can read"),
        (["--audio", "empty.wav"], "empty.wav"),
        (["--audio", "missing.wav"], "missing.wav does not exist"),
        (["--image", "no.png"], "no.png is not an image Nearfield can read"),
    ],
)
def test_ask_refuses_what_it_cannot_answer_and_leaves_nothing(
    bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    asked: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("no.wav", "no.png"):
        Path(name).write_bytes(b"neither sound nor picture")
    soundfile.write("empty.wav", np.zeros(0), 16_000)
    before = sorted(tmp_path.iterdir())
    assert main(["ask", str(bundle), *asked, "--out", "reply.wav", "--json", "reply.json"]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert sorted(tmp_path.iterdir()) == before


def test_what_was_cut_is_told_with_the_option() -> None:
    timing = Timing(1, 1, 50, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)

    def told(text: TextStop, speech: SpeechStop | None) -> list[str]:
        return cuts(Reply(TurnEnd("", text, speech, timing), np.zeros(0, np.float32), 24_000), max_codes=50)

    assert told("end", "end") == told("end", None) == []
    assert told("max_tokens", "max_codes") == ["text cut by --max-tokens", "speech cut by --max-seconds"]
    assert "--context" in told("context", None)[0]
    assert "--context" in told("end", "context")[0]
    assert "did not end" in told("end", "text")[0]
    whole = Reply(TurnEnd("", "end", "max_codes", timing), np.zeros(0, np.float32), 24_000)
    assert cuts(whole, max_codes=51) == ["speech cut by the checkpoint's limit"]


def test_a_clip_longer_than_the_checkpoint_hears_is_told(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    question = tmp_path / "question.wav"
    for seconds, told in ((30, False), (31, True)):
        soundfile.write(question, np.zeros(seconds * 8_000), 8_000)
        assert main(["ask", str(bundle), "--audio", str(question), "--no-speech", "--max-tokens", "1"]) == 0
        warning = "only the first 30 s of 31 s are heard: the checkpoint's limit"
        assert (warning in capsys.readouterr().err) == told


def test_ask_scales_a_photograph_so_that_it_fits_and_the_context_can_be_set(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photograph, record = tmp_path / "photo.png", tmp_path / "reply.json"
    PIL.Image.new("RGB", (4000, 3000), "teal").save(photograph)
    quick = ["--no-speech", "--max-tokens", "2", "--json", str(record)]
    assert main(["ask", str(bundle), "--image", str(photograph), "--image-pixels", "50000", *quick]) == 0
    taken = json.loads(record.read_text(encoding="utf-8"))["prompt_tokens"]
    assert 50 < taken < 50_000 // 784 + 120
    assert main(["ask", str(bundle), "--image", str(photograph), "--context", "500", *quick]) == 1
    assert "its context holds 500" in capsys.readouterr().err


@pytest.mark.parametrize(("rate_hz", "channels", "subtype"), [(44_100, 2, "PCM_U8"), (8_000, 1, "PCM_16")])
def test_ask_hears_sound_of_any_rate_width_and_channels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rate_hz: int, channels: int, subtype: str
) -> None:
    samples, recorded_hz = soundfile.read(DEMO_QUESTIONS[0].recording)
    question = tmp_path / "question.wav"
    resampled = soxr.resample(samples, recorded_hz, rate_hz)
    soundfile.write(question, np.stack([resampled] * channels, axis=1), rate_hz, subtype=subtype)
    assert main(["ask", str(DEMO_BUNDLE), "--audio", str(question), "--no-speech"]) == 0
    assert capsys.readouterr().out.strip() == "Seven plus four is eleven."


def test_the_demo_holds_its_conversation_and_measures_every_turn(tmp_path: Path) -> None:
    replies, record = tmp_path / "replies", tmp_path / "demo.json"
    assert main(["demo", "--no-play", "--out", str(replies), "--json", str(record)]) == 0
    held = json.loads(record.read_text(encoding="utf-8"))
    assert held["voice"] == "Chelsie"
    assert [turn["question"] for turn in held["turns"]] == [question.words for question in DEMO_QUESTIONS]
    assert [turn["transcript"] for turn in held["turns"]] == [
        "Seven plus four is eleven.",
        "Seven plus four is eleven.",
        "A purple star.",
    ]
    for number, turn in enumerate(held["turns"], start=1):
        for figure in ("time_to_first_token_ms", "time_to_first_audio_ms", "real_time_factor", "audio_seconds"):
            assert turn[figure] > 0
        assert 10 < turn["peak_rss_mb"] < 100_000
        samples, rate_hz = soundfile.read(replies / f"reply-{number}.wav")
        assert rate_hz == turn["sample_rate_hz"] == 24_000
        assert len(samples) / rate_hz == pytest.approx(turn["audio_seconds"])
        assert np.abs(samples).max() > 0.01, "silence is no answer"


def test_the_recordings_that_ship_are_clips_of_one_sentence_and_the_picture_can_be_read() -> None:
    for question in DEMO_QUESTIONS:
        info = soundfile.info(question.recording)
        assert (info.format, info.samplerate, info.channels) == ("FLAC", 16_000, 1)
        assert 0.8 < info.duration < 4
        assert question.recording.stat().st_size < 60_000
    [picture] = [question.picture for question in DEMO_QUESTIONS if question.picture is not None]
    assert read_image(picture).shape[2] == 3


def test_the_shipped_bundle_is_whole() -> None:
    bundle = Bundle.open(DEMO_BUNDLE)
    bundle.check()
    assert {component.dialect for component in bundle.manifest.components.values()} == {"ort"}
