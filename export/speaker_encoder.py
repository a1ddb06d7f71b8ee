"""The DiT's speaker encoder, evaluated in NumPy once a voice: its result is constant, so no graph holds it.

Inputs: `ref_mel float32 (1, frames, 80)`, natural log → output `encoding float32 (1, 128)`. Checkpoint prefix:
`token2wav.code2wav_dit_model.input_embed.spk_encoder.`. The network is ECAPA-TDNN (arXiv 2005.07143): dilated
convolutions with reflected ends, Res2Net groups, squeeze and excitation, attentive pooling of mean and deviation.
Inside, a signal is `(channels, frames)`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import CheckpointError
from .dit_config import DIT_PREFIX, DiTConfig
from .graph import TensorSource

Floats = npt.NDArray[np.float32]

_PREFIX = f"{DIT_PREFIX}input_embed.spk_encoder."
_LEAST_VARIANCE = 1e-12  # the reference's constant


def encode_speaker(config: DiTConfig, source: TensorSource, ref_mel: Floats) -> Floats:
    """Return the encoding `(1, enc_dim)` of a reference mel `(1, frames, mel bins)`.

    Raises `CheckpointError` for a mel of another form or too short to be reflected at its ends, `ExportError` for a
    missing or wrong tensor.
    """
    _check(config, ref_mel)
    signal = np.ascontiguousarray(ref_mel[0].T, np.float32)  # (bins, frames)
    kernels = list(zip(config.enc_channels, config.enc_kernel_sizes, config.enc_dilations, strict=True))
    channels, kernel, dilation = kernels[0]
    signal = _tdnn(source, "blocks.0.", signal, channels, kernel, dilation)
    outputs = []
    for index, (channels, kernel, dilation) in enumerate(kernels[1:-1], start=1):
        signal = _se_res2net(config, source, f"blocks.{index}.", signal, channels, kernel, dilation)
        outputs.append(signal)
    channels, kernel, dilation = kernels[-1]
    signal = _tdnn(source, "mfa.", np.concatenate(outputs), channels, kernel, dilation)
    pooled = _attentive_pooling(config, source, signal)  # (2 · channels, 1)
    return _conv(source, "fc.", pooled, config.enc_dim).T


def _check(config: DiTConfig, ref_mel: Floats) -> None:
    if ref_mel.ndim != 3 or ref_mel.shape[0] != 1 or ref_mel.shape[2] != config.mel_dim:
        raise CheckpointError(
            f"a voice's ref_mel has shape {ref_mel.shape}; expected (1, frames, {config.mel_dim}): "
            "download spk_dict.pt again"
        )
    reach = max(
        (kernel - 1) * dilation // 2
        for kernel, dilation in zip(config.enc_kernel_sizes, config.enc_dilations, strict=True)
    )
    if ref_mel.shape[1] <= reach:
        raise CheckpointError(
            f"a voice's ref_mel has {ref_mel.shape[1]} frames; expected more than {reach}: download spk_dict.pt again"
        )


def _se_res2net(
    config: DiTConfig, source: TensorSource, name: str, x: Floats, channels: int, kernel: int, dilation: int
) -> Floats:
    """A block around a residual: convolution, Res2Net, convolution, squeeze and excitation."""
    y = _tdnn(source, f"{name}tdnn1.", x, channels)
    y = _res2net(config, source, f"{name}res2net_block.", y, kernel, dilation)
    y = _tdnn(source, f"{name}tdnn2.", y, channels)
    squeezed = y.mean(axis=1, keepdims=True)  # (channels, 1)
    squeezed = np.maximum(_conv(source, f"{name}se_block.conv1.", squeezed, config.enc_se_channels), 0)
    scores = _conv(source, f"{name}se_block.conv2.", squeezed, channels)
    return y / (1 + np.exp(-scores)) + x  # y · sigmoid(scores)


def _res2net(config: DiTConfig, source: TensorSource, name: str, x: Floats, kernel: int, dilation: int) -> Floats:
    """Channel groups in a row: the first passes, each later one is convolved with the result before it added."""
    groups = np.split(x, config.enc_res2net_scale)
    parts = groups[:1]
    for index, group in enumerate(groups[1:]):
        given = group if index == 0 else group + parts[-1]
        parts.append(_tdnn(source, f"{name}blocks.{index}.", given, len(group), kernel, dilation))
    return np.concatenate(parts)


def _attentive_pooling(config: DiTConfig, source: TensorSource, x: Floats) -> Floats:
    """Mean and deviation over frames, weighted by attention that knows both, `(2 · channels, 1)`."""
    channels, frames = x.shape
    even = np.full((1, frames), 1 / frames, np.float32)
    given = np.concatenate([x, *(np.broadcast_to(part, x.shape) for part in _statistics(x, even))])
    hidden = np.tanh(_tdnn(source, "asp.tdnn.", given, config.enc_attention_channels))
    scores = _conv(source, "asp.conv.", hidden, channels)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    return np.concatenate(_statistics(x, weights))


def _statistics(x: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Weighted mean and standard deviation over frames, each `(channels, 1)`."""
    mean = (weights * x).sum(axis=1, keepdims=True)
    variance = (weights * (x - mean) ** 2).sum(axis=1, keepdims=True)
    return mean, np.sqrt(np.maximum(variance, np.float32(_LEAST_VARIANCE)))


def _tdnn(source: TensorSource, name: str, x: Floats, outputs: int, kernel: int = 1, dilation: int = 1) -> Floats:
    """Convolution and ReLU."""
    return np.maximum(_conv(source, f"{name}conv.", x, outputs, kernel, dilation), 0)


def _conv(source: TensorSource, name: str, x: Floats, outputs: int, kernel: int = 1, dilation: int = 1) -> Floats:
    """Convolution that keeps the number of frames, ends reflected: `(inputs, frames) → (outputs, frames)`."""
    weight = source.read(f"{_PREFIX}{name}weight", (outputs, x.shape[0], kernel)).astype(np.float32, copy=False)
    bias = source.read(f"{_PREFIX}{name}bias", (outputs,)).astype(np.float32, copy=False)
    frames, reach = x.shape[1], (kernel - 1) * dilation
    padded = np.pad(x, ((0, 0), (reach // 2, reach - reach // 2)), mode="reflect")
    y = np.repeat(bias[:, None], frames, axis=1)
    for tap in range(kernel):
        y += weight[:, :, tap] @ padded[:, tap * dilation : tap * dilation + frames]
    return y
