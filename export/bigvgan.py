"""BigVGAN, the vocoder of Token2Wav (arXiv 2206.04658): mel to waveform.

Inputs: `mel f (1, 80, F)`, natural log → output `waveform f (1, 240·F)`, −1 … 1, 24 kHz. Checkpoint prefix:
`token2wav.code2wav_bigvgan_model.`.

Every activation works at twice the rate, so that SnakeBeta's harmonics do not alias: a low-pass doubles the rate before
it and another halves it after. Here the even and the odd samples of the doubled signal are two channels, so that both
low-passes are ordinary grouped convolutions and nothing is interleaved (1.7 to 2.1 times as fast on a CPU as the
reference's transposed convolution: docs/measurements/token2wav_graphs.txt).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ..errors import CheckpointError
from .config import Section
from .graph import (
    Array,
    ComponentGraph,
    Module,
    ModuleList,
    Op,
    Parameter,
    Port,
    Style,
    TensorSource,
    Value,
    build,
)
from .layers import Conv1d, constant

_MIN_DB, _REFERENCE_DB = -115.0, 20.0  # the reference's constants, in no configuration
_TAPS = 12  # of the low-pass; odd and even samples see six each
_REACH = 3  # samples either side that one phase of the low-pass sees
_ACTIVATION_REACH = 5  # samples either side that an activation sees: 3 samples up, 3 samples less a phase down
_LAST = np.iinfo(np.int64).max


@dataclass(frozen=True)
class BigVGANConfig:
    """Settings of the vocoder."""

    mel_dim: int
    upsample_initial_channel: int
    resblock_kernel_sizes: tuple[int, ...]
    resblock_dilation_sizes: tuple[tuple[int, ...], ...]
    upsample_rates: tuple[int, ...]
    upsample_kernel_sizes: tuple[int, ...]

    @classmethod
    def from_hf(cls, section: Section) -> BigVGANConfig:
        """Read `token2wav_config.bigvgan_config`; what is absent has the default of the reference's class."""
        config = cls(
            mel_dim=section.integer("mel_dim", default=80),
            upsample_initial_channel=section.integer("upsample_initial_channel", default=1536),
            resblock_kernel_sizes=section.integers("resblock_kernel_sizes", default=(3, 7, 11)),
            resblock_dilation_sizes=_dilations(section),
            upsample_rates=section.integers("upsample_rates", default=(5, 3, 2, 2, 2, 2)),
            upsample_kernel_sizes=section.integers("upsample_kernel_sizes", default=(11, 7, 4, 4, 4, 4)),
        )
        if len(config.upsample_rates) != len(config.upsample_kernel_sizes):
            raise CheckpointError(
                f"{section.path}: {len(config.upsample_rates)} upsample_rates and "
                f"{len(config.upsample_kernel_sizes)} upsample_kernel_sizes; expected one of each for every stage"
            )
        if len(config.resblock_kernel_sizes) != len(config.resblock_dilation_sizes):
            raise CheckpointError(
                f"{section.path}: {len(config.resblock_kernel_sizes)} resblock_kernel_sizes and "
                f"{len(config.resblock_dilation_sizes)} resblock_dilation_sizes; expected one of each for every block"
            )
        return config

    def channels(self, stage: int) -> int:
        """Channels after `stage` upsamplings; 0 is before the first."""
        return self.upsample_initial_channel // 2**stage

    @property
    def samples_per_frame(self) -> int:
        """Waveform samples a mel frame becomes."""
        return math.prod(self.upsample_rates)

    @property
    def context_frames(self) -> int:
        """Mel frames on each side that can reach a frame's samples; nothing further away does.

        An activation sees 5 samples each way, a convolution (kernel − 1) · dilation / 2. A block is three times
        activation, dilated convolution, activation, convolution; the widest of a stage counts. An upsampling by s with
        kernel k and padding p sees (k − 1 − p) / s. Published, in frames: 3 before the stages; in every stage
        6 · 5 + 5 · (1 + 3 + 5) + 3 · 5 = 90 samples, at 5, 15, 30, 60, 120 and 240 samples a frame together 29.63;
        upsamplings 1.4 + 0.27 + 0.07 + 0.03 + 0.02 + 0.01; at the end 5 + 3 samples, 0.03. Sum 34.45: 34 whole frames.
        """
        reach, rate = 3.0, 1
        for step, kernel in zip(self.upsample_rates, self.upsample_kernel_sizes, strict=True):
            padding = (kernel - step) // 2
            reach += (kernel - 1 - padding) / step / rate
            rate *= step
            reach += max(self._block_reach(*block) for block in self._blocks) / rate
        return math.floor(reach + (_ACTIVATION_REACH + 3) / rate)

    @property
    def _blocks(self) -> list[tuple[int, tuple[int, ...]]]:
        return list(zip(self.resblock_kernel_sizes, self.resblock_dilation_sizes, strict=True))

    @staticmethod
    def _block_reach(kernel: int, dilations: tuple[int, ...]) -> int:
        return sum(2 * _ACTIVATION_REACH + (kernel - 1) // 2 * (dilation + 1) for dilation in dilations)


def _dilations(section: Section) -> tuple[tuple[int, ...], ...]:
    """Read the list of lists; the reference builds three convolutions of each kind, so each has three dilations."""
    value: Any = section.values.get("resblock_dilation_sizes")
    if value is None:
        return ((1, 3, 5),) * 3
    if not isinstance(value, list) or not all(
        isinstance(row, list) and len(row) == 3 and all(isinstance(item, int) for item in row) for row in value
    ):
        raise CheckpointError(
            f"{section.path}.resblock_dilation_sizes is {value!r}; expected lists of three whole numbers"
        )
    return tuple(tuple(row) for row in value)


def low_pass() -> Array:
    """Return the reference's low-pass for a factor of two, `float32 (12)`: a sinc under a Kaiser window, of sum 1.

    Cut off at a quarter of the rate, a transition 0.3 wide; the window's beta follows from both by Kaiser's formulas.
    """
    cutoff, transition = 0.25, 0.3
    attenuation_db = 2.285 * (_TAPS // 2 - 1) * math.pi * 4 * transition + 7.95  # 51 dB
    beta = 0.1102 * (attenuation_db - 8.7)  # Kaiser's formula above 50 dB
    places = np.arange(-_TAPS // 2, _TAPS // 2) + 0.5
    taps = np.kaiser(_TAPS, beta) * np.sinc(2 * cutoff * places)
    return (taps / taps.sum()).astype(np.float32)


def phase_kernels() -> tuple[Array, Array]:
    """Kernels `(2, 7)` of even and odd samples: to the doubled rate (which needs a gain of 2), and back from it.

    With taps h and reach 3, even samples of the doubled signal are Σ h[2m + 1] x[p + 2 − m] and odd ones
    Σ h[2m] x[p + 3 − m]; going back, sample p is Σ h[2m + 1] even[p − 2 + m] + Σ h[2m] odd[p − 3 + m].
    """
    h = low_pass()
    up, down = np.zeros((2, 2 * _REACH + 1), np.float32), np.zeros((2, 2 * _REACH + 1), np.float32)
    up[0, :-1], up[1, 1:] = 2 * h[1::2][::-1], 2 * h[::2][::-1]
    down[0, 1:], down[1, :-1] = h[1::2], h[::2]
    return up, down


class SnakeBeta(Module):
    """`x + sin²(alpha · x) / beta` for a channel's alpha and beta, whose logarithms the checkpoint has (`act`)."""

    def __init__(self, channels: int, style: Style) -> None:
        super().__init__()
        self.channels, self.style = channels, style
        self.alpha = Parameter((channels, 1, 1), style.dtype)
        self.beta = Parameter((channels, 1, 1), style.dtype)

    def forward(self, op: Op, x: Value) -> Value:
        """`(1, channels, 2, T)`, both phases."""
        wave = op.Sin(op.Mul(x, self.alpha))
        return op.Add(x, op.Mul(op.Mul(wave, wave), self.beta))

    def bind_own(self, prefix: str, source: TensorSource) -> Iterator[tuple[ir.Value, Array]]:
        """Store exp(alpha) and 1 / (exp(beta) + 1e-9), so that no exponential is left to overflow in half precision."""
        alpha, log_beta = (
            source.read(f"{prefix}{name}", (self.channels,)).astype(np.float32) for name in ("alpha", "beta")
        )
        # A half float ends at 65504; factors beyond it, which no trained model has come near, would become infinite.
        largest = float(np.finfo(self.style.numpy_dtype).max)
        for parameter, factor in ((self.alpha, np.exp(alpha)), (self.beta, 1 / (np.exp(log_beta) + 1e-9))):
            yield parameter, np.minimum(factor, largest).reshape(-1, 1, 1)


@dataclass(frozen=True)
class Filters:
    """The low-pass to the doubled rate and back, once for every channel of a stage, as graph values."""

    up: Value
    """`(channels · 2, 1, 7)`"""
    down: Value
    """`(channels, 2, 7)`"""


class Activation(Module):
    """SnakeBeta at twice the rate, between two low-passes (checkpoint: `activations.N`, `activation_post`)."""

    def __init__(self, channels: int, style: Style) -> None:
        super().__init__()
        self.channels = channels
        self.act = SnakeBeta(channels, style)

    def forward(self, op: Op, x: Value, filters: Filters) -> Value:
        """`(1, channels, T) → (1, channels, T)`; beyond its ends a signal keeps its last value, at either rate."""
        ends = [1, 1, _REACH]
        first, last = op.Slice(x, [0], [1], [2]), op.Slice(x, [-1], [_LAST], [2])
        x = op.Concat(op.Expand(first, ends), x, op.Expand(last, ends), axis=2)  # Pad is slow or missing on GPUs
        x = op.Conv(x, filters.up, group=self.channels)  # (1, channels · 2, T)
        x = self.act(op, op.Reshape(x, [1, self.channels, 2, -1]))  # (1, channels, 2, T)
        # Before the start every sample is the first, an even one; after the end, the last, an odd one.
        first = op.Slice(x, [0, 0], [1, 1], [2, 3])
        last = op.Slice(x, [1, -1], [2, _LAST], [2, 3])
        ends = [1, 1, 2, _REACH]
        x = op.Concat(op.Expand(first, ends), x, op.Expand(last, ends), axis=3)
        x = op.Reshape(x, [1, 2 * self.channels, -1])  # (1, channels · 2, T + 6)
        return op.Conv(x, filters.down, group=self.channels)


class ConvTranspose1d(Module):
    """Upsampling by a whole factor, `(1, in, T) → (1, out, factor · T)` (checkpoint: `ups.N.0`)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, factor: int, style: Style) -> None:
        super().__init__()
        self.kernel, self.factor = kernel, factor
        self.weight = Parameter((inputs, outputs, kernel), style.dtype)
        self.bias = Parameter((outputs,), style.dtype)

    def forward(self, op: Op, x: Value) -> Value:
        """Emit ConvTranspose."""
        padding = (self.kernel - self.factor) // 2
        return op.ConvTranspose(
            x, self.weight, self.bias, kernel_shape=[self.kernel], strides=[self.factor], pads=[padding, padding]
        )


class ResBlock(Module):
    """Three pairs of dilated and plain convolution, each around a residual (checkpoint: `resblocks.N`)."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...], style: Style) -> None:
        super().__init__()

        def convolution(dilation: int) -> Conv1d:
            padding = (kernel - 1) * dilation // 2
            return Conv1d(channels, channels, kernel, style, padding=padding, dilation=dilation)

        self.convs1 = ModuleList([convolution(dilation) for dilation in dilations])
        self.convs2 = ModuleList([convolution(1) for _ in dilations])
        self.activations = ModuleList([Activation(channels, style) for _ in range(2 * len(dilations))])

    def forward(self, op: Op, x: Value, filters: Filters) -> Value:
        """`(1, channels, T) → (1, channels, T)`."""
        for index, (conv1, conv2) in enumerate(zip(self.convs1, self.convs2, strict=True)):
            hidden = conv1(op, self.activations[2 * index](op, x, filters))
            x = op.Add(x, conv2(op, self.activations[2 * index + 1](op, hidden, filters)))
        return x


class BigVGAN(Module):
    """The whole vocoder (checkpoint: `token2wav.code2wav_bigvgan_model`)."""

    def __init__(self, config: BigVGANConfig, style: Style) -> None:
        super().__init__()
        self.config, self.style = config, style
        self.conv_pre = Conv1d(config.mel_dim, config.channels(0), 7, style, padding=3)
        factors = zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True)
        self.upsamplings = [
            ConvTranspose1d(config.channels(i), config.channels(i + 1), kernel, factor, style)
            for i, (factor, kernel) in enumerate(factors)
        ]
        self.ups = ModuleList([ModuleList([upsampling]) for upsampling in self.upsamplings])  # as the checkpoint nests
        blocks = list(zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True))
        self.resblocks = ModuleList(
            [
                ResBlock(config.channels(stage + 1), kernel, dilations, style)
                for stage in range(len(config.upsample_rates))
                for kernel, dilations in blocks
            ]
        )
        last = config.channels(len(config.upsample_rates))
        self.activation_post = Activation(last, style)
        self.conv_post = Conv1d(last, 1, 7, style, padding=3, bias=False)

    def forward(self, op: Op, mel: Value) -> list[Value]:
        """Return `waveform (1, 240·F)`."""
        x = self.conv_pre(op, self._normalized(op, mel))
        count = len(self.config.resblock_kernel_sizes)
        share = constant(op, 1 / count, self.style)
        for stage, upsampling in enumerate(self.upsamplings):
            x = upsampling(op, x)  # (1, channels, T)
            filters = self._filters(op, self.config.channels(stage + 1))
            blocks = [self.resblocks[stage * count + i](op, x, filters) for i in range(count)]
            x = op.Mul(op.Sum(*blocks), share)
        waveform = self.conv_post(op, self.activation_post(op, x, filters))  # (1, 1, 240·F)
        return [op.Clip(op.Squeeze(waveform, [1]), constant(op, -1, self.style), constant(op, 1, self.style))]

    def _normalized(self, op: Op, mel: Value) -> Value:
        """The reference's scale: decibels from the floor at −115 to 0, moved by −20, onto −1 … 1.

        It goes through exp and log10, which cancel: dB = 20 / ln 10 · mel. Its floor under the amplitude maps below −1,
        so that the clip does that clamp's work as well.
        """
        slope = 2 / -_MIN_DB * 20 / math.log(10)
        offset = 2 * (-_MIN_DB - _REFERENCE_DB) / -_MIN_DB - 1
        scaled = op.Add(op.Mul(mel, constant(op, slope, self.style)), constant(op, offset, self.style))
        return op.Clip(scaled, constant(op, -1, self.style), constant(op, 1, self.style))

    def _filters(self, op: Op, channels: int) -> Filters:
        """The same kernels for every channel."""
        up, down = (kernels.astype(self.style.numpy_dtype) for kernels in phase_kernels())
        return Filters(
            up=op.Constant(value=ir.tensor(np.tile(up[:, None], (channels, 1, 1)))),
            down=op.Constant(value=ir.tensor(np.tile(down[None], (channels, 1, 1)))),
        )


def vocoder_graph(config: BigVGANConfig, style: Style) -> ComponentGraph:
    """Build the vocoder's graph."""
    root = BigVGAN(config, style)
    model = build(
        root,
        style,
        "vocoder",
        inputs=[Port("mel", style.dtype, (1, config.mel_dim, "frames"))],
        outputs=[Port("waveform", style.dtype, (1, "samples"))],
    )
    return ComponentGraph("vocoder", model, root, "token2wav.code2wav_bigvgan_model.")
