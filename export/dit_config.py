"""Settings of the DiT, of its modulation and of its speaker encoder, which share a section of `config.json`."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import CheckpointError
from .config import Section

DIT_PREFIX = "token2wav.code2wav_dit_model."
"""Checkpoint prefix of all three."""


@dataclass(frozen=True)
class DiTConfig:
    """Settings of the DiT and of its speaker encoder (`enc_…`)."""

    hidden_size: int
    layers: int
    heads: int
    head_dim: int
    ff_mult: int
    emb_dim: int
    rope_theta: float
    max_positions: int
    block_size: int
    look_ahead_layers: tuple[int, ...]
    look_backward_layers: tuple[int, ...]
    repeats: int
    num_embeds: int
    mel_dim: int
    enc_emb_dim: int
    enc_dim: int
    enc_channels: tuple[int, ...]
    enc_kernel_sizes: tuple[int, ...]
    enc_dilations: tuple[int, ...]
    enc_attention_channels: int
    enc_res2net_scale: int
    enc_se_channels: int

    @classmethod
    def from_hf(cls, section: Section) -> DiTConfig:
        """Read `token2wav_config.dit_config`, in either spelling; raises `CheckpointError`.

        Published files name width, depth and heads only: the defaults are those of the reference's class.
        """
        rope = section.section("rope_parameters") if section.has("rope_parameters") else section
        config = cls(
            hidden_size=section.integer("hidden_size", "dim", default=1024),
            layers=section.integer("num_hidden_layers", "depth", default=22),
            heads=section.integer("num_attention_heads", "heads", default=16),
            head_dim=section.integer("head_dim", default=64),
            ff_mult=section.integer("ff_mult", default=2),
            emb_dim=section.integer("emb_dim", default=512),
            rope_theta=rope.number("rope_theta", default=10_000.0),
            max_positions=section.integer("max_position_embeddings", default=32768),
            block_size=section.integer("block_size", default=24),
            look_ahead_layers=section.integers("look_ahead_layers", default=(10,)),
            look_backward_layers=section.integers("look_backward_layers", default=(0, 20)),
            repeats=section.integer("repeats", default=2),
            num_embeds=section.integer("num_embeds", default=8193),
            mel_dim=section.integer("mel_dim", default=80),
            enc_emb_dim=section.integer("enc_emb_dim", default=192),
            enc_dim=section.integer("enc_dim", default=128),
            enc_channels=section.integers("enc_channels", default=(256, 256, 256, 256, 768)),
            enc_kernel_sizes=section.integers("enc_kernel_sizes", default=(5, 3, 3, 3, 1)),
            enc_dilations=section.integers("enc_dilations", default=(1, 2, 3, 4, 1)),
            enc_attention_channels=section.integer("enc_attention_channels", default=64),
            enc_res2net_scale=section.integer("enc_res2net_scale", default=2),
            enc_se_channels=section.integer("enc_se_channels", default=64),
        )
        if not len(config.enc_channels) == len(config.enc_kernel_sizes) == len(config.enc_dilations):
            raise CheckpointError(
                f"{section.path}: enc_channels, enc_kernel_sizes and enc_dilations have "
                f"{len(config.enc_channels)}, {len(config.enc_kernel_sizes)} and {len(config.enc_dilations)} entries; "
                "expected one of each for every layer of the speaker encoder"
            )
        return config

    @property
    def modulation_rows(self) -> int:
        """Rows of the modulation at one time: six a layer, two for the final norm."""
        return 6 * self.layers + 2
