"""DiT and vocoder at the published size beside forms they could have had: float32, CPU, two threads, random weights.

    python docs/measurements/token2wav_graphs.py > docs/measurements/token2wav_graphs.txt

1. One DiT evaluation with attention block by block, against attention over all F × F pairs under the reference's mask.
2. The same with the modulation as an input, against the modulation computed in the graph from the time.
3. The vocoder's activation on its own, against transposed convolutions and against a batch of single channels.
4. The vocoder, for 2.4 s of speech.

Needs the extra `[export]`, 3 GB of disk and 6 GB of memory. CPU time stands beside the clock's, because other work on
the machine stretches the clock's alone; waiting threads do not spin, so that it counts work.
"""

import os
import platform
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
from nearfield.export.attention import full_attention
from nearfield.export.bigvgan import (
    Activation,
    BigVGANConfig,
    Filters,
    SnakeBeta,
    low_pass,
    phase_kernels,
    vocoder_graph,
)
from nearfield.export.bind import Reader, write_component
from nearfield.export.config import Section
from nearfield.export.dit import Blocks, DiT, DiTAttention, dit_graph
from nearfield.export.dit_config import DiTConfig
from nearfield.export.graph import (
    FLOAT32,
    INT64,
    Array,
    ComponentGraph,
    Module,
    ModuleList,
    Op,
    Port,
    Style,
    Value,
    build,
)
from nearfield.export.layers import Linear, silu

THREADS = 2
STYLE = Style("ort", "float32")
DIT = DiTConfig.from_hf(Section({}, "dit_config"))
VOCODER = BigVGANConfig.from_hf(Section({}, "bigvgan_config"))
FRAMES = (240, 1440)


class Noise(Reader):
    """A checkpoint of whatever shapes are asked for, filled with small noise; no two tensors are alike."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.component, self.counts = "", Counter[str]()

    def read(self, name: str, shape: Sequence[int]) -> Array:  # noqa: ARG002  # noise needs no name
        """Return noise, of the size 1/√fan-in at the width of the DiT."""
        self.counts[self.component] += int(np.prod(shape))
        return (self.random.random(shape, np.float32) - np.float32(0.5)) * np.float32(0.1)


class FullAttention(DiTAttention):
    """The reference's form: every frame against every frame, and a mask that leaves the blocks seen."""

    def forward(self, op: Op, x: Value, blocks: Blocks) -> Value:
        """`(2, P, width) → (2, P, width)`."""
        query, key = (self._rotate_head_0(op, project(op, x), blocks) for project in (self.to_q, self.to_k))
        out = full_attention(
            op, self.style, query, key, self.to_v(op, x), self.config.heads, self._full_mask(op, blocks)
        )
        return self.to_out[0](op, out)

    def _full_mask(self, op: Op, blocks: Blocks) -> Value:
        keys = blocks.key_mask  # (1, P)
        count = op.Div(op.Shape(keys, start=1, end=2), [self.config.block_size])
        size = op.Constant(value_int=self.config.block_size)
        ends = op.Mul(op.Squeeze(count, [0]), size)
        block = op.Div(op.Range(op.Constant(value_int=0), ends, op.Constant(value_int=1)), size)
        apart = op.Sub(op.Unsqueeze(block, [0]), op.Unsqueeze(block, [1]))  # (P, P), key's block − query's
        lowest, highest = -int(self.look_backward), int(self.look_ahead)
        seen = op.And(op.GreaterOrEqual(apart, [lowest]), op.LessOrEqual(apart, [highest]))
        low = op.Constant(value=ir.tensor(np.array(-1e4, np.float32)))
        return op.Unsqueeze(op.Where(seen, keys, low), [0, 1])  # (1, 1, P, P)


class WithModulation(Module):
    """The DiT with the network that makes its modulation in front of it, its time embedding computed outside."""

    def __init__(self, config: DiTConfig, style: Style) -> None:
        super().__init__()
        self.time_mlp = ModuleList(
            [Linear(256, config.hidden_size, style), Linear(config.hidden_size, config.hidden_size, style)]
        )
        widths = [6 * config.hidden_size] * config.layers + [2 * config.hidden_size]
        self.linears = ModuleList([Linear(config.hidden_size, width, style) for width in widths])
        self.dit = DiT(config, style)

    def forward(
        self, op: Op, mel: Value, codes: Value, speaker: Value, encoding: Value, waves: Value, guidance: Value
    ) -> list[Value]:
        """`waves f (1, 256)`: sines and cosines of the time."""
        hidden = silu(op, self.time_mlp[1](op, silu(op, self.time_mlp[0](op, waves))))
        rows = [op.Reshape(linear(op, hidden), [-1, DIT.hidden_size]) for linear in self.linears]
        return list(self.dit(op, mel, codes, speaker, encoding, op.Concat(*rows, axis=0), guidance))


def dit_with_full_attention() -> ComponentGraph:
    """The DiT's graph with `FullAttention` in every layer."""
    root = DiT(DIT, STYLE)
    for layer, block in enumerate(root.transformer_blocks):
        block.attn = FullAttention(
            DIT, STYLE, look_backward=layer in DIT.look_backward_layers, look_ahead=layer in DIT.look_ahead_layers
        )
    return dit_variant(root, Port("modulation", STYLE.dtype, (DIT.modulation_rows, DIT.hidden_size)))


def dit_variant(root: Module, modulation: Port) -> ComponentGraph:
    """The DiT's graph with another root."""
    mel = Port("mel", FLOAT32, (1, "frames", 80))
    inputs = [
        mel, Port("codes", INT64, (1, "codes")), Port("speaker", FLOAT32, (1, 192)),
        Port("encoding", FLOAT32, (2, 128)), modulation, Port("guidance", FLOAT32, ()),
    ]  # fmt: skip
    model = build(root, STYLE, "dit", inputs, [Port("velocity", FLOAT32, mel.shape)])
    return ComponentGraph("dit", model, root, "")


class Transposed(Module):
    """The reference's form of the activation: up by a depthwise transposed convolution, down by one of stride 2."""

    def __init__(self, channels: int, style: Style) -> None:
        super().__init__()
        self.channels = channels
        self.act = SnakeBeta(channels, style)

    def forward(self, op: Op, x: Value, filters: object) -> Value:  # noqa: ARG002  # it has its own
        """`(1, channels, T) → (1, channels, T)`."""
        taps = np.tile(low_pass(), (self.channels, 1, 1))
        x = op.Pad(x, [0, 0, 5, 0, 0, 5], mode="edge")
        x = op.ConvTranspose(x, op.Constant(value=ir.tensor(2 * taps)), strides=[2], group=self.channels, pads=[15, 15])
        x = op.Squeeze(self.act(op, op.Unsqueeze(x, [2])), [2])
        x = op.Pad(x, [0, 0, 5, 0, 0, 6], mode="edge")
        return op.Conv(x, op.Constant(value=ir.tensor(taps)), strides=[2], group=self.channels)


class SingleChannels(Activation):
    """The two phases, with channels as a batch of signals in place of groups of a convolution."""

    def forward(self, op: Op, x: Value, filters: object) -> Value:  # noqa: ARG002  # it has its own
        """`(1, channels, T) → (1, channels, T)`."""
        up, down = (
            op.Constant(value=ir.tensor(kernel)) for kernel in (phase_kernels()[0][:, None], phase_kernels()[1][None])
        )
        x = op.Pad(op.Reshape(x, [self.channels, 1, -1]), [0, 0, 3, 0, 0, 3], mode="edge")
        x = op.Squeeze(self.act(op, op.Unsqueeze(op.Conv(x, up), [0])), [0])  # (channels, 2, T)
        first, last = op.Slice(x, [0, 0], [1, 1], [1, 2]), op.Slice(x, [1, -1], [2, 2**40], [1, 2])
        x = op.Concat(op.Expand(first, [1, 2, 3]), x, op.Expand(last, [1, 2, 3]), axis=2)
        return op.Reshape(op.Conv(x, down), [1, self.channels, -1])


def activation_graph(kind: Callable[[int, Style], Module], channels: int) -> ComponentGraph:
    """One activation as a graph."""
    root = kind(channels, STYLE)
    up, down = phase_kernels()

    def forward(op: Op, x: Value) -> list[Value]:
        filters = Filters(
            op.Constant(value=ir.tensor(np.tile(up[:, None], (channels, 1, 1)))),
            op.Constant(value=ir.tensor(np.tile(down[None], (channels, 1, 1)))),
        )
        return [root(op, x, filters)]

    signal = (1, channels, "samples")
    model = build(root, STYLE, "activation", [Port("x", FLOAT32, signal)], [Port("y", FLOAT32, signal)], forward)
    return ComponentGraph("vocoder", model, root, "")


def load(component: ComponentGraph) -> tuple[onnxruntime.InferenceSession, int]:
    """Fill the graph with noise and load it; returns the number of its weights too."""
    reader = Noise()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        write_component(component, reader, Path(directory))
        path = Path(directory) / f"{component.name}.onnx"
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]), reader.counts.total()


def timed(label: str, call: Callable[[], Sequence[Array]], runs: int) -> Array:
    """Run a few times, print the best and return what came out."""
    clock, processor = [], []
    for _ in range(runs):
        start, start_processor = time.perf_counter(), time.process_time()
        (out,) = call()
        clock.append(time.perf_counter() - start)
        processor.append(time.process_time() - start_processor)
    print(f"{label}: {min(clock):.3f} s, CPU time {min(processor):.3f} s (best of {runs})", flush=True)
    return out


def dit_inputs(frames: int) -> dict[str, Array]:
    """Inputs of one evaluation, either form of the modulation among them."""
    random = np.random.default_rng(frames)

    def noise(*shape: int) -> Array:
        return random.standard_normal(shape).astype(np.float32)

    return {
        "mel": noise(1, frames, 80), "codes": random.integers(0, DIT.num_embeds, (1, frames // 2)),
        "speaker": noise(1, 192), "encoding": noise(2, 128), "waves": noise(1, 256),
        "modulation": noise(DIT.modulation_rows, DIT.hidden_size), "guidance": np.array(0.5, np.float32),
    }  # fmt: skip


def measure_dit() -> None:
    """Three forms of the DiT, one loaded at a time. The first two have the same weights and give the same velocity."""
    blocks: dict[int, Array] = {}
    waves = Port("waves", FLOAT32, (1, 256))
    forms: dict[str, Callable[[], ComponentGraph]] = {
        "block by block, modulation an input": lambda: dit_graph(DIT, STYLE),
        "all F × F under a mask": dit_with_full_attention,
        "block by block, modulation in the graph": lambda: dit_variant(WithModulation(DIT, STYLE), waves),
    }
    for name, form in forms.items():
        session, parameters = load(form())
        print(f"DiT, {name}: {parameters / 1e6:.1f} million weights, {4 * parameters / 1e6:.0f} MB")
        names = [port.name for port in session.get_inputs()]
        for frames in FRAMES:
            inputs = {key: value for key, value in dit_inputs(frames).items() if key in names}
            runs = 3 if frames == FRAMES[0] else 1
            out = timed(f"  F = {frames}", partial(session.run, None, inputs), runs)
            if frames not in blocks:
                blocks[frames] = out
            elif "waves" not in names:
                apart = np.linalg.norm(out - blocks[frames]) / np.linalg.norm(out)
                print(f"    relative distance to block by block: {apart:.1e}")


def measure_vocoder() -> None:
    """The activation in three forms, where it has many channels and where it has few, then the whole."""
    for channels, samples in ((768, 1200), (96, 14_400), (24, 57_600)):
        x = np.random.default_rng(1).standard_normal((1, channels, samples)).astype(np.float32)
        outputs: list[Array] = []
        for kind in (Activation, SingleChannels, Transposed):
            session, _ = load(activation_graph(kind, channels))
            out = timed(f"activation ({channels}, {samples}), {kind.__name__}", partial(session.run, None, {"x": x}), 5)
            outputs.append(out)
            if len(outputs) > 1:
                print(f"  largest difference from the first: {np.abs(out - outputs[0]).max():.1e}")
    session, parameters = load(vocoder_graph(VOCODER, STYLE))
    print(f"vocoder: {parameters / 1e6:.1f} million weights")
    mel = np.random.default_rng(2).normal(-5.5, 2.0, (1, 80, 240)).astype(np.float32)
    timed("vocoder, 240 frames = 2.4 s of speech", partial(session.run, None, {"mel": mel}), 2)


def main() -> None:
    """Print the table."""
    versions = f"onnxruntime {onnxruntime.__version__}, numpy {np.__version__}, Python {platform.python_version()}"
    print(f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} CPUs, {THREADS} threads, float32, {versions}")
    print(f"load of the machine {os.getloadavg()[0] if hasattr(os, 'getloadavg') else float('nan'):.1f}")
    measure_dit()
    measure_vocoder()


if __name__ == "__main__":
    main()
