"""What `verify` runs: inputs for every component, and the reference implementation's answer to them.

The reference's weights come through Nearfield's own reader, a module at a time while it runs (`streamed`), so that
memory is that of the largest module even at 7B. Inputs are seeded and of the kind the component meets: rows of the
embedding table, a voice's own mel. Needs torch, transformers, accelerate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, Qwen2_5OmniConfig
from transformers.initialization import no_init_weights
from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as reference
from transformers.utils import logging

from ..runtime.bundle import Bundle
from ..runtime.manifest import ComponentName, KVCache
from ..runtime.vision_layout import vision_layout
from .graph import Array
from .voices import read_voices

WeightReader = Callable[[str], Array]
"""Returns the float32 tensor of a published name."""

_POSITIONS = 48  # of a prompt: enough for every attention pattern, quick at 7B
_CODES = 30  # of the DiT: two blocks and a half
_GRID = (20, 12)  # patches of an image: windows whole and cut


@dataclass(frozen=True)
class Trial:
    """One component's inputs, and the reference's float32 outputs, given its weights and the type it computes in."""

    inputs: dict[str, Array]
    reference: Callable[[WeightReader, torch.dtype], dict[str, Array]]


class Trials:
    """Makes each component's trial, from one seed."""

    def __init__(self, bundle: Bundle, checkpoint: Path) -> None:
        self.bundle, self.manifest = bundle, bundle.manifest
        logging.set_verbosity_error()  # or it compares the Talker's text ids with its code vocabulary, and complains
        self.config = Qwen2_5OmniConfig.from_pretrained(checkpoint)
        self.voice_name, self.voice = next(iter(read_voices(checkpoint / "spk_dict.pt").items()))

    def of(self, name: ComponentName) -> Trial:
        """Return the trial of one component."""
        makers: dict[ComponentName, Callable[[np.random.Generator], Trial]] = {
            "audio_encoder": self._audio_encoder,
            "vision_encoder": self._vision_encoder,
            "thinker": self._thinker,
            "talker": self._talker,
            "dit": self._dit,
            "vocoder": self._vocoder,
        }
        return makers[name](np.random.default_rng(0))

    def _audio_encoder(self, rng: np.random.Generator) -> Trial:
        """Three blocks, the last one cut short."""
        audio = self.manifest.audio
        frames = [audio.block_frames, audio.block_frames, audio.block_frames // 2 + 7]
        mel = rng.standard_normal((audio.mel_bins, sum(frames))).astype(np.float32)
        blocks = np.zeros((len(frames), audio.mel_bins, audio.block_frames), np.float32)
        for index, count in enumerate(frames):
            blocks[index, :, :count] = mel[:, index * audio.block_frames :][:, :count]
        lengths = [((count - 1) // 2 + 1) // 2 for count in frames]

        def run(read: WeightReader, dtype: torch.dtype) -> dict[str, Array]:
            kind, section = reference.Qwen2_5OmniAudioEncoder, self.config.thinker_config.audio_config
            with streamed(kind, section, "thinker.audio_tower.", read, dtype) as encoder:
                out = encoder(tensor(mel, dtype), feature_lens=torch.tensor([sum(frames)])).last_hidden_state
            padded = np.zeros((len(frames), lengths[0], out.shape[1]), np.float32)
            for index, part in enumerate(torch.split(out, lengths)):
                padded[index, : len(part)] = part.float().numpy()
            return {"embeddings": padded}

        return Trial({"mel": self._float("audio_encoder", blocks), "frames": np.array(frames)}, run)

    def _vision_encoder(self, rng: np.random.Generator) -> Trial:
        """Two temporal patches of a grid that its windows do not divide."""
        vision = self.manifest.vision
        layout = vision_layout(*_GRID, vision)
        width = 3 * vision.temporal_patch_frames * vision.patch_pixels**2
        pixels = rng.standard_normal((2, _GRID[0] * _GRID[1], width)).astype(np.float32)

        def run(read: WeightReader, dtype: torch.dtype) -> dict[str, Array]:
            kind, section = reference.Qwen2_5OmniVisionEncoder, self.config.thinker_config.vision_config
            with streamed(kind, section, "thinker.visual.", read, dtype) as encoder:
                grid = torch.tensor([[len(pixels), *_GRID]])
                out = encoder(torch.from_numpy(pixels.reshape(-1, width)), grid_thw=grid).pooler_output.float().numpy()
            merged = out.reshape(len(pixels), -1, out.shape[1])  # (T, P / 4, D), in the processor's order
            return {"embeddings": merged[:, np.argsort(layout.embedding_order)]}  # in the order of windows

        inputs = {
            "pixels": self._float("vision_encoder", pixels[:, layout.patch_order]),
            "positions": layout.positions,
            "window_slots": layout.window_slots,
            "patch_slots": layout.patch_slots,
        }
        return Trial(inputs, run)

    def _thinker(self, rng: np.random.Generator) -> Trial:
        """Rows of the embedding table under ids that differ on every axis."""
        embeds, ids = self._prompt(rng)

        def run(read: WeightReader, dtype: torch.dtype) -> dict[str, Array]:
            kind, section = reference.Qwen2_5OmniThinkerTextModel, self.config.thinker_config.text_config
            with streamed(kind, section, "thinker.model.", read, dtype) as decoder:
                hidden = decoder(inputs_embeds=embeds.to(dtype), position_ids=ids).last_hidden_state
            logits = hidden[:, -1] @ tensor(read("thinker.lm_head.weight"), dtype).T
            return {"logits": logits.float().numpy(), "last_hidden_state": hidden.float().numpy()}

        return Trial(self._decoder_inputs("thinker", embeds, ids, self.manifest.thinker.kv_cache), run)

    def _talker(self, rng: np.random.Generator) -> Trial:
        """The same prompt's rows, as the Talker takes them."""
        embeds, ids = self._prompt(rng)

        def run(read: WeightReader, dtype: torch.dtype) -> dict[str, Array]:
            weight, bias = (tensor(read(f"talker.thinker_to_talker_proj.{part}"), dtype) for part in ("weight", "bias"))
            rows = embeds.to(dtype) @ weight.T + bias
            kind, section = reference.Qwen2_5OmniTalkerModel, self.config.talker_config
            with streamed(kind, section, "talker.model.", read, dtype) as decoder:
                hidden = decoder(inputs_embeds=rows, position_ids=ids).last_hidden_state
            logits = hidden[:, -1] @ tensor(read("talker.codec_head.weight"), dtype).T
            return {"logits": logits.float().numpy()}

        return Trial(self._decoder_inputs("talker", embeds, ids, self.manifest.talker.kv_cache), run)

    def _dit(self, rng: np.random.Generator) -> Trial:
        """One guided evaluation in the middle of the schedule, for the first voice."""
        token2wav = self.manifest.token2wav
        step = len(token2wav.ode.times) // 2
        frames = _CODES * token2wav.frames_per_code
        mel = rng.standard_normal((1, frames, token2wav.mel_bins)).astype(np.float32)
        codes = rng.integers(0, token2wav.code_count, (1, _CODES))

        def run(read: WeightReader, dtype: torch.dtype) -> dict[str, Array]:
            kind, section = reference.Qwen2_5OmniToken2WavDiTModel, self.config.token2wav_config.dit_config
            with streamed(kind, section, "token2wav.code2wav_dit_model.", read, dtype) as dit:
                both = dit(
                    hidden_states=tensor(mel, dtype),
                    condition_vector=tensor(self.voice.ref_mel, dtype),
                    speaker_embedding=tensor(self.voice.cond, dtype)[:, None].repeat(1, frames, 1),
                    quantized_code=torch.from_numpy(codes),
                    time_step=torch.tensor(token2wav.ode.times[step], dtype=dtype),
                )
            guided, null = both.float().chunk(2)
            return {"velocity": (guided + (guided - null) * token2wav.ode.guidance).numpy()}

        arrays = self.bundle.voice(self.voice_name)
        floats = {
            "mel": mel,
            "speaker": arrays.cond,
            "encoding": arrays.encoding,
            "modulation": self.bundle.dit_modulation()[step],
            "guidance": np.array(token2wav.ode.guidance),
        }
        return Trial({"codes": codes} | {name: self._float("dit", array) for name, array in floats.items()}, run)

    def _vocoder(self, rng: np.random.Generator) -> Trial:
        """The reference mel of the first voice, a little disturbed."""
        mel = self.voice.ref_mel[:, :100].transpose(0, 2, 1)
        mel = np.ascontiguousarray(mel + 0.1 * rng.standard_normal(mel.shape), np.float32)

        def run(read: WeightReader, dtype: torch.dtype) -> dict[str, Array]:
            kind, section = reference.Qwen2_5OmniToken2WavBigVGANModel, self.config.token2wav_config.bigvgan_config
            with streamed(kind, section, "token2wav.code2wav_bigvgan_model.", read, dtype) as vocoder:
                return {"waveform": vocoder(tensor(mel, dtype)).float().numpy()[None]}

        return Trial({"mel": self._float("vocoder", mel)}, run)

    def _prompt(self, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings `(1, S, D)` and ids `(3, 1, S)`."""
        table = self.bundle.thinker_embedding()
        embeds = table[rng.integers(0, len(table), _POSITIONS)].astype(np.float32)
        steps = np.arange(_POSITIONS)
        return torch.from_numpy(embeds)[None], torch.from_numpy(np.stack([steps, steps // 2 + 3, steps % 7]))[:, None]

    def _decoder_inputs(
        self, name: ComponentName, embeds: torch.Tensor, ids: torch.Tensor, cache: KVCache
    ) -> dict[str, Array]:
        """Inputs of a decoder for a prompt in one piece, its cache empty."""
        component = self.manifest.components[name]
        positions = _POSITIONS if component.dialect == "ort" else 0  # a buffer, or nothing to concatenate to
        empty = np.zeros((1, cache.kv_heads, positions, cache.head_dim), cache.stored_as(component))
        inputs: dict[str, Array] = {
            f"past_key_values.{layer}.{kind}": empty for layer in range(cache.layers) for kind in ("key", "value")
        }
        if component.dialect == "ort":
            inputs["seqlens_k"] = np.array([_POSITIONS - 1], np.int32)
            inputs["total_sequence_length"] = np.array(_POSITIONS, np.int32)
        return inputs | {"inputs_embeds": self._float(name, embeds.numpy()), "position_ids": ids[:, 0].numpy()}

    def _float(self, name: ComponentName, array: Array) -> Array:
        return array.astype(self.manifest.components[name].dtype)


def tensor(array: Array, dtype: torch.dtype) -> torch.Tensor:
    """A float array as the reference takes it."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(dtype)


@contextmanager
def streamed(
    kind: type[PreTrainedModel], config: PreTrainedConfig, prefix: str, read: WeightReader, dtype: torch.dtype
) -> Iterator[nn.Module]:
    """Make a reference model whose modules hold their weights only while they run.

    Buffers (rotary frequencies, filters) are real from the start; parameters are placeholders that a hook fills before
    a module runs and empties after.
    """
    with no_init_weights(), init_empty_weights():
        model: nn.Module = kind._from_config(config)
    model.eval()
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name == "filter":  # the vocoder's; rotary frequencies stay float32 as in a loaded model
                setattr(module, name, buffer.to(dtype))
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(dtype)  # a placeholder's type is looked at before it is filled
        if any(True for _ in module.parameters(recurse=False)):
            start = f"{prefix}{path}." if path else prefix
            module.register_forward_pre_hook(_filler(start, read, dtype))
            module.register_forward_hook(_empty)
    with torch.no_grad():
        yield model


def _filler(start: str, read: WeightReader, dtype: torch.dtype) -> Callable[[nn.Module, object], None]:
    def fill(module: nn.Module, _: object) -> None:
        for name in [name for name, _ in module.named_parameters(recurse=False)]:
            setattr(module, name, nn.Parameter(tensor(read(start + name), dtype), requires_grad=False))

    return fill


def _empty(module: nn.Module, *_: object) -> None:
    for name, parameter in list(module.named_parameters(recurse=False)):
        setattr(module, name, nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False))
