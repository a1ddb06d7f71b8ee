"""Codes to sound: a whole reply beside the reference, the vocoder in pieces, and what is refused."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from graphs import Array, Graph, open_component
from nearfield.errors import InputError
from nearfield.export.bigvgan import BigVGANConfig, vocoder_graph
from nearfield.export.bind import Reader
from nearfield.export.checkpoint import Checkpoint
from nearfield.export.dit import dit_graph
from nearfield.export.dit_config import DiTConfig
from nearfield.export.dit_modulation import modulation_table, rk4_times
from nearfield.export.graph import Style
from nearfield.export.speaker_encoder import encode_speaker
from nearfield.runtime import manifest
from nearfield.runtime.bundle import LoadedVoice
from nearfield.runtime.token2wav import Token2Wav
from tolerances import VOCODER_PIECES, WHOLE_REPLY_RELATIVE, relative_error

CODES = np.random.default_rng(3).integers(0, 257, 45)  # three blocks and three quarters


@dataclass
class Case:
    """One checkpoint's graphs, its reference, and a voice of both."""

    dit: Graph
    vocoder: Graph
    settings: manifest.Token2Wav
    modulation: npt.NDArray[np.float32]
    voice: LoadedVoice
    reference: Any
    cond: torch.Tensor
    ref_mel: torch.Tensor

    def open(self, **options: Any) -> Token2Wav:
        return Token2Wav(self.dit, self.vocoder, self.settings, self.modulation, **options)


@pytest.fixture(scope="module", params=["3b", "7b"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    path: Path = request.getfixturevalue(f"checkpoint_{request.param}")
    reference = request.getfixturevalue(f"reference_{request.param}").token2wav
    directory = tmp_path_factory.mktemp("token2wav")
    checkpoint, style = Checkpoint.open(path), Style("ort", "float32")
    section, reader = checkpoint.config.section("token2wav_config"), Reader(checkpoint)
    dit = DiTConfig.from_hf(section.section("dit_config"))
    vocoder = BigVGANConfig.from_hf(section.section("bigvgan_config"))
    voice = torch.load(path / "spk_dict.pt", weights_only=True)["Chelsie"]
    ref_mel = voice["ref_mel"].numpy()
    encoding = np.concatenate([encode_speaker(dit, reader, mel) for mel in (ref_mel, np.zeros_like(ref_mel))])
    times = rk4_times(10, -1.0)
    return Case(
        open_component(dit_graph(dit, style), path, directory),
        open_component(vocoder_graph(vocoder, style), path, directory),
        settings_for(dit, vocoder, [float(time) for time in times]),
        modulation_table(dit, reader, times),
        LoadedVoice(voice["cond"].numpy(), encoding, bos_token_id=0),
        reference,
        voice["cond"],
        voice["ref_mel"],
    )


def settings_for(dit: DiTConfig, vocoder: BigVGANConfig, times: list[float]) -> manifest.Token2Wav:
    return manifest.Token2Wav(
        code_count=dit.num_embeds,
        frames_per_code=dit.repeats,
        block_frames=dit.block_size,
        mel_bins=dit.mel_dim,
        sample_rate_hz=24_000,
        samples_per_frame=vocoder.samples_per_frame,
        vocoder_context_frames=vocoder.context_frames,
        max_frames=200,
        ode=manifest.OdeSchedule(solver="rk4", times=times, guidance=0.5),
        modulation="dit_modulation.npy",
    )


def test_a_whole_reply_equals_the_reference_given_its_noise(case: Case) -> None:
    torch.manual_seed(5)
    noise = torch.randn(1, 2 * len(CODES), 80).numpy()
    torch.manual_seed(5)  # the reference draws its noise itself, in this shape
    codes = torch.from_numpy(CODES)[None]
    with torch.no_grad():
        expected_mel = case.reference.code2wav_dit_model.sample(case.cond, case.ref_mel, codes).numpy()
        expected = case.reference.code2wav_bigvgan_model(torch.from_numpy(expected_mel)).numpy()
    token2wav = case.open()
    mel = token2wav.mel(CODES, case.voice, noise=noise)
    assert relative_error(mel[None], expected_mel) <= WHOLE_REPLY_RELATIVE
    waveform = token2wav.waveform(mel)
    assert waveform.dtype == np.float32
    assert relative_error(waveform, expected) <= WHOLE_REPLY_RELATIVE


@pytest.mark.parametrize("piece_frames", [7, 36, 99, 100, 300])
def test_the_vocoder_in_pieces_equals_the_whole(case: Case, piece_frames: int) -> None:
    mel = np.random.default_rng(2).normal(-5.5, 2.0, (80, 100)).astype(np.float32)
    whole = case.vocoder.run({"mel": mel[None]})["waveform"][0]
    pieces = list(case.open(piece_frames=piece_frames).waveform_pieces(mel))
    assert [len(piece) for piece in pieces[:-1]] == [240 * piece_frames] * (len(pieces) - 1)
    assert relative_error(np.concatenate(pieces), whole) <= VOCODER_PIECES


def test_the_vocoder_sees_no_more_than_a_piece_and_its_context(case: Case) -> None:
    vocoder = FakeVocoder()
    token2wav = Token2Wav(case.dit, vocoder, case.settings, case.modulation, piece_frames=50)
    mel = np.arange(175, dtype=np.float32) * np.ones((80, 1), np.float32)
    waveform = token2wav.waveform(mel)
    assert vocoder.seen == [(0, 83), (16, 133), (66, 174), (116, 174)]  # 34 frames either side
    assert (waveform == np.repeat(np.arange(175), 240)).all()


@dataclass
class FakeVocoder:
    """Makes a frame's first value its samples, and keeps the first and last frame of each call."""

    seen: list[tuple[int, int]] = field(default_factory=list)

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        frames = inputs["mel"][0, 0]
        self.seen.append((int(frames[0]), int(frames[-1])))
        return {"waveform": np.repeat(frames, 240)[None]}


def test_a_reply_in_parts_is_the_reply_in_one(case: Case) -> None:
    token2wav = case.open(piece_frames=30)
    token2wav.begin(case.voice, seed=7)
    for part in (CODES[:1], CODES[1:1], CODES[1:20], CODES[20:]):
        token2wav.push(part)
    pieces = list(token2wav.finish())
    assert [len(piece) for piece in pieces] == [30 * 240] * 3
    expected = token2wav.waveform(token2wav.mel(CODES, case.voice, seed=7))
    assert (np.concatenate(pieces) == expected).all()


def test_the_seed_decides_the_noise(case: Case) -> None:
    token2wav, codes = case.open(), CODES[:3]
    assert (token2wav.mel(codes, case.voice, seed=1) == token2wav.mel(codes, case.voice, seed=1)).all()
    assert (token2wav.mel(codes, case.voice, seed=1) != token2wav.mel(codes, case.voice, seed=2)).any()


def test_a_reply_without_codes_makes_no_sound_and_leaves_nothing_behind(case: Case) -> None:
    token2wav = case.open()
    token2wav.begin(case.voice, seed=0)
    token2wav.push(CODES)
    token2wav.begin(case.voice, seed=0)
    assert list(token2wav.finish()) == []
    with pytest.raises(ValueError, match="no reply has begun"):
        list(token2wav.finish())


@pytest.mark.parametrize("code", [-1, 257, 8292])
def test_codes_without_an_embedding_are_refused(case: Case, code: int) -> None:
    token2wav, codes = case.open(), np.array([0, 256, code])
    token2wav.begin(case.voice, seed=0)
    for refused in (lambda: token2wav.mel(codes, case.voice), lambda: token2wav.push(codes)):
        with pytest.raises(InputError, match=rf"code {code} at place 2 cannot be spoken; expected 0 … 256"):
            refused()


def test_no_codes_and_too_many_codes_are_refused(case: Case) -> None:
    token2wav = case.open()
    with pytest.raises(InputError, match="expected at least one"):
        token2wav.mel(CODES[:0], case.voice)
    with pytest.raises(InputError, match="101 codes has 202 mel frames; the DiT has positions for 200"):
        token2wav.mel(np.zeros(101, np.int64), case.voice)
    token2wav.begin(case.voice, seed=0)
    token2wav.push(np.zeros(60, np.int64))
    with pytest.raises(InputError, match="101 codes has 202 mel frames"):
        token2wav.push(np.zeros(41, np.int64))


def test_noise_of_another_shape_is_refused(case: Case) -> None:
    with pytest.raises(InputError, match=r"noise has shape \(1, 80, 90\); expected \(1, 90, 80\) for 45 codes"):
        case.open().mel(CODES, case.voice, noise=np.zeros((1, 80, 90), np.float32))
