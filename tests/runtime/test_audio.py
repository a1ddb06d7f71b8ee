"""Sound files of every kind → 16 kHz mono, and WAV files back."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from nearfield.errors import AudioError
from nearfield.runtime.audio import SAMPLE_RATE_HZ, from_array, read_audio, write_wav
from numpy.typing import NDArray


def tone(rate_hz: int, seconds: float = 0.5, frequency_hz: float = 440.0) -> NDArray[np.float64]:
    return 0.5 * np.sin(2 * np.pi * frequency_hz * np.arange(int(rate_hz * seconds)) / rate_hz)


@pytest.mark.parametrize(
    ("suffix", "container", "subtype", "allowed"),
    [
        ("wav", "WAV", "PCM_U8", 1 / 64),
        ("wav", "WAV", "PCM_16", 1e-3),
        ("wav", "WAV", "PCM_24", 1e-3),
        ("wav", "WAV", "FLOAT", 1e-3),
        ("flac", "FLAC", "PCM_16", 1e-3),
        ("ogg", "OGG", "VORBIS", 0.05),
        ("mp3", "MP3", "MPEG_LAYER_III", 0.05),
    ],
)
@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_every_format_gives_the_same_tone_at_16_khz(
    tmp_path: Path, suffix: str, container: str, subtype: str, allowed: float, rate_hz: int, channels: int
) -> None:
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, np.tile(tone(rate_hz)[:, None], channels), rate_hz, format=container, subtype=subtype)
    heard = read_audio(path)
    assert heard.dtype == np.float32
    assert heard.ndim == 1
    expected = tone(SAMPLE_RATE_HZ)
    middle = slice(2_000, 6_000)  # away from the ends, where resampling and MP3 ring
    if container == "MP3":
        # The encoder delays the sound; its loudness is what can be held.
        assert np.sqrt(np.mean(heard[middle] ** 2)) == pytest.approx(0.5 / np.sqrt(2), rel=allowed)
    else:
        assert len(heard) == len(expected)
        assert np.abs(heard[middle] - expected[middle]).max() < allowed


def test_16_khz_is_not_touched(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, 1_000).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, SAMPLE_RATE_HZ, subtype="FLOAT")
    assert np.array_equal(read_audio(tmp_path / "a.wav"), samples)


def test_stereo_is_averaged(tmp_path: Path) -> None:
    left, right = tone(16_000), 0.5 * tone(16_000, frequency_hz=900)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], 1), SAMPLE_RATE_HZ, subtype="FLOAT")
    assert np.allclose(read_audio(tmp_path / "a.wav"), (left + right) / 2, atol=1e-6)


def test_a_file_without_a_known_suffix_is_read_by_its_content(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.raw", tone(16_000), SAMPLE_RATE_HZ, format="WAV")
    assert len(read_audio(tmp_path / "a.raw")) == 8_000


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32, np.float64])
def test_arrays_have_full_scale_one(dtype: type[Any]) -> None:
    scale = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1
    assert np.allclose(from_array((tone(16_000) * scale).astype(dtype), 16_000), tone(16_000), atol=1e-4)


def test_resampling_keeps_the_duration() -> None:
    assert len(from_array(np.zeros(44_100), 44_100)) == SAMPLE_RATE_HZ


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"nothing\.wav does not exist"):
        read_audio(tmp_path / "nothing.wav")


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="cannot be opened"):
        read_audio(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a sound", b"RIFF\x00\x00\x00\x00WAVE"])
def test_not_a_sound_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    with pytest.raises(AudioError, match=r"a\.wav is not a sound file Nearfield can read .* convert it"):
        read_audio(path)


def test_file_without_samples(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(0), SAMPLE_RATE_HZ)
    with pytest.raises(AudioError, match=r"a\.wav is empty"):
        read_audio(tmp_path / "a.wav")


def test_file_with_nan(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.array([0.0, np.nan]), SAMPLE_RATE_HZ, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"a\.wav holds values that are not finite"):
        read_audio(tmp_path / "a.wav")


@pytest.mark.parametrize(
    ("samples", "rate_hz", "message"),
    [
        (np.zeros(10), 0, "sample rate of 0 Hz"),
        (np.zeros(10), float("nan"), "sample rate of nan Hz"),
        (np.zeros(0), 16_000, "empty"),
        (np.zeros(1), 768_000, "empty"),
        (np.zeros((2, 100)), 16_000, r"shape \(samples,\) or \(samples, channels\), found \(2, 100\)"),
        (np.zeros((10, 0)), 16_000, "found"),
        (np.zeros((2, 3, 4)), 16_000, "found"),
        (np.zeros(10, np.uint8), 16_000, "int16 or int32 samples, found uint8"),
        (np.zeros(10, np.complex64), 16_000, "found complex64"),
        (np.array([np.inf]), 16_000, "not finite"),
    ],
)
def test_arrays_that_cannot_be_used(samples: NDArray[Any], rate_hz: float, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        from_array(samples, rate_hz)


@given(st.lists(st.floats(-2, 2), max_size=50))
def test_written_wav_is_the_clipped_samples(tmp_path_factory: pytest.TempPathFactory, values: list[float]) -> None:
    path = tmp_path_factory.mktemp("wav") / "reply.wav"
    write_wav(path, np.array(values, np.float32), 24_000)
    read, rate_hz = soundfile.read(path, dtype="int16")
    assert rate_hz == 24_000
    assert soundfile.info(path).subtype == "PCM_16"
    expected = np.clip(np.array(values, np.float32), -1, 1) * 32767.0
    assert np.abs(read - expected).max(initial=0) <= 0.5
    assert [file.name for file in path.parent.iterdir()] == ["reply.wav"]


def test_writing_replaces_a_file(tmp_path: Path) -> None:
    path = tmp_path / "reply.wav"
    path.write_bytes(b"old")
    write_wav(path, np.zeros(10, np.float32), 24_000)
    assert soundfile.info(path).frames == 10


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.array([np.nan]), "not finite"),
        (np.zeros((2, 2)), r"must be float \(N,\), found float64 \(2, 2\)"),
        (np.zeros(2, np.int16), "found int16"),
    ],
)
def test_refused_samples_leave_the_old_file(tmp_path: Path, samples: NDArray[Any], message: str) -> None:
    path = tmp_path / "reply.wav"
    path.write_bytes(b"old")
    with pytest.raises(AudioError, match=message):
        write_wav(path, samples, 24_000)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("reply.wav", b"old")]


def test_writing_into_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="cannot be written"):
        write_wav(tmp_path / "missing" / "reply.wav", np.zeros(1), 24_000)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "reply.wav"
    target.mkdir()  # cannot be replaced by a file
    with pytest.raises(AudioError, match="cannot be written"):
        write_wav(target, np.zeros(1), 24_000)
    assert [file.name for file in tmp_path.iterdir()] == ["reply.wav"]


def test_what_is_not_a_file_is_refused_and_stays() -> None:
    device = Path(os.devnull)
    with pytest.raises(AudioError, match="it is a device or a pipe"):
        write_wav(device, np.zeros(1), 24_000)
    assert device.exists()
    assert not device.is_file()


@pytest.mark.skipif(
    sys.platform == "win32", reason="the limit on a file's size, which stands for a full disk, is POSIX"
)
def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "reply.wav"
    path.write_bytes(b"old")
    code = (
        "import resource, sys, numpy\n"
        "from nearfield.runtime.audio import write_wav\n"
        "from nearfield.errors import AudioError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: write_wav(sys.argv[1], numpy.zeros(5000), 24000)\n"
        "except AudioError as error: print(error)\n"
    )
    told = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True).stdout
    assert told == f"{path} cannot be written (File too large); choose another place\n"
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("reply.wav", b"old")]
