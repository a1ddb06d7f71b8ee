"""Rewrite a saved checkpoint in the spelling of the published Qwen2.5-Omni files, which older ``transformers`` wrote.

Inputs: a directory written by ``save_pretrained`` → outputs: the same weights with ``rope_scaling`` and a top-level
``rope_theta`` in place of ``rope_parameters``, a DiT section of ``dim``, ``depth``, ``heads`` and only those settings
that are not the class defaults, and the two tensors the published files hold and nothing reads
(``thinker.audio_tower.audio_bos_eos_token.weight``, which 5.x still writes, and the DiT's ``rotary_embed.inv_freq``).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from checkpoint_shapes import DIT_ROPE_THETA
from safetensors.torch import load_file, save_file
from transformers import PreTrainedConfig
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniBigVGANConfig, Qwen2_5OmniDiTConfig

UNUSED_DIT_TENSOR = "token2wav.code2wav_dit_model.rotary_embed.inv_freq"
_DIT_NAMES = {"hidden_size": "dim", "num_hidden_layers": "depth", "num_attention_heads": "heads"}


def respell_as_published(directory: Path) -> None:
    """Rewrite ``config.json`` and add the unused DiT tensor; ``save_pretrained`` already writes the published names."""
    path = directory / "config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    head_dim: int = config["token2wav_config"]["dit_config"]["head_dim"]
    path.write_text(json.dumps(_respell_config(config), indent=2) + "\n", encoding="utf-8", newline="\n")
    inv_freq = DIT_ROPE_THETA ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    _add_tensor(directory, UNUSED_DIT_TENSOR, inv_freq)


def _respell_config(config: dict[str, Any]) -> dict[str, Any]:
    thinker, talker, token2wav = (config[f"{part}_config"] for part in ("thinker", "talker", "token2wav"))
    for section in (thinker["text_config"], talker):
        rope = section.pop("rope_parameters")
        section["rope_theta"] = rope["rope_theta"]
        section["rope_scaling"] = {"mrope_section": rope["mrope_section"], "rope_type": "default", "type": "default"}
        del section["layer_types"]
    del thinker["vision_config"]["rope_parameters"]
    del token2wav["dit_config"]["rope_parameters"]
    dit = _without_defaults(token2wav["dit_config"], Qwen2_5OmniDiTConfig())
    token2wav["dit_config"] = {_DIT_NAMES.get(key, key): value for key, value in dit.items()}
    token2wav["bigvgan_config"] = _without_defaults(token2wav["bigvgan_config"], Qwen2_5OmniBigVGANConfig())
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.50.0.dev0"
    return config


def _without_defaults(section: dict[str, Any], defaults: PreTrainedConfig) -> dict[str, Any]:
    """The settings of ``section`` that differ from the class defaults, and its model type."""
    default: dict[str, Any] = json.loads(defaults.to_json_string(use_diff=False))
    changed = {key: value for key, value in section.items() if key not in default or default[key] != value}
    return {"model_type": section["model_type"], **changed}


def _add_tensor(directory: Path, name: str, tensor: torch.Tensor) -> None:
    """Add one tensor to the last shard, and to the index where there is one."""
    shard = sorted(directory.glob("*.safetensors"))[-1]
    save_file({**load_file(shard), name: tensor}, shard, metadata={"format": "pt"})
    index_path = directory / "model.safetensors.index.json"
    if not index_path.exists():
        return
    index: dict[str, Any] = json.loads(index_path.read_text(encoding="utf-8"))
    index["weight_map"][name] = shard.name
    index["metadata"]["total_size"] += tensor.numel() * tensor.element_size()
    index_path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8", newline="\n")
