"""What a key/value cache of float16 or int8 costs in exactness, and what a step costs by how far a sequence has come.

    python docs/measurements/kv_cache.py nano > docs/measurements/kv_cache.txt
    python docs/measurements/kv_cache.py steps >> docs/measurements/kv_cache.txt

`nano`: right answers of the float32 bundle with each type, of 120 held-out items, and the relative error of logits over
their replies, read as they should be; then the same error for other ways to choose an int8 cache's scales, at the
start and 20,000 positions later. Calibrated on nano/calibration. About ten minutes.

`steps`: a decoder of two layers of 3B's widths, INT4 weights of noise, a vocabulary of 1024, on two threads, with 256
to 32,000 positions of noise in its cache; beside it attention alone, which must read all of them, and what is left. A
line is fitted to each. Then attention alone after few positions, by the context that is allocated. Needs 3 GB of
memory, and a machine that does nothing else: rounds go through all cases. Two minutes.

Needs the extra `[train]`.
"""

import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime
from encoders import Noise
from nearfield.calibrate.components import decoder_given
from nearfield.calibrate.inputs import Steps, open_component, thinker_steps
from nearfield.calibrate.kv_scales import LARGEST_CODE, kv_scales, layer_graph
from nearfield.calibrate.samples import Sample, read_samples
from nearfield.export.attention import CacheScales, CacheShape, cached_attention, split_cache_inputs
from nearfield.export.bind import Reader, write_component
from nearfield.export.checkpoint import Checkpoint
from nearfield.export.decoder import DecoderConfig
from nearfield.export.export import Configs, ExportOptions, export_bundle
from nearfield.export.graph import Array, ComponentGraph, Module, Op, Port, Style, Value, build
from nearfield.export.thinker import thinker_graph
from nearfield.nano.calibration import FOLDER
from nearfield.nano.evaluate import CHECKPOINT, MAX_TOKENS
from nearfield.nano.questions import load, messages
from nearfield.runtime.decoder import Decoder, _GrowingCache
from nearfield.runtime.events import TurnEnd
from nearfield.runtime.manifest import Component, Dialect, KVCache
from nearfield.runtime.omni import Omni
from nearfield.runtime.session import Memory, Session, SessionSettings, open_session

ITEMS, TASKS = 120, ("sentences", "voices", "typed", "again", "picture", "video")
FAR = 20_000
STYLE = Style("ort", "float32")

THREADS = 2
POSITIONS = (256, 1000, 4000, 8000, 16_000, 32_000)
ROUNDS, WARM_STEPS, STEPS = 9, 2, 5
CONTEXT = 32_768
SMALLER_CONTEXTS = (1024, 8192)
MODEL_3B = DecoderConfig(
    hidden_size=2048, layers=2, heads=16, kv_heads=2, head_dim=128, intermediate_size=11008, vocab_size=1024,
    max_positions=CONTEXT, norm_epsilon=1e-6, rope_theta=1e6, mrope_section=(16, 24, 24),
)  # fmt: skip


def decoder_of(session: Session, config: DecoderConfig, cache: CacheShape, dialect: Dialect, context: int) -> "Filled":
    """A decoder over a graph with this cache."""
    component = Component(graph="", data="", dtype="float32", dialect=dialect, parameters=0, quantization=None)
    kept = KVCache(layers=config.layers, kv_heads=config.kv_heads, head_dim=config.head_dim, dtype=cache.dtype)
    return Filled(session, component, kept, name="Thinker", vocab_size=config.vocab_size, context=context)


class Filled(Decoder):
    """A decoder that can be put anywhere in a sequence that is noise."""

    def fill(self, length: int) -> None:
        """Go on after `length` positions. In `ort` they are in the buffer already (`NoisyMemory`)."""
        self._length = length
        if isinstance(self._cache, _GrowingCache):
            shape = (1, self._cache._shape.kv_heads, length, self._cache._shape.head_dim)
            self._cache._past = [NoisyMemory("cpu").zeros(shape, np.float32) for _ in self._cache._past_names]


class NoisyMemory(Memory):
    """Memory that gives noise for zeros: untouched pages are all the same one, which would be read too fast."""

    def zeros(self, shape: Sequence[int], dtype: np.dtype) -> onnxruntime.OrtValue:
        """Allocate noise."""
        noise = np.random.default_rng(0).standard_normal(shape, np.float32)
        return self.place((noise * 30).astype(dtype) if dtype == np.int8 else noise.astype(dtype))


def relative_error(out: Array, reference: Array) -> float:
    """Of the norms."""
    return float(np.linalg.norm(out - reference) / np.linalg.norm(reference))


def quiet(*_: object) -> None:
    """Progress that nobody watches."""


class Nano:
    """Nano's Thinker, what it was calibrated on, and held-out conversations with the right replies."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.checkpoint = folder, Checkpoint.open(CHECKPOINT)
        self.config = Configs.from_hf(self.checkpoint.config).thinker
        self.head = self.checkpoint.read("thinker.lm_head.weight").astype(np.float32)
        items = [item for item in load() if item.task in TASKS]
        self.items = [items[i] for i in np.random.default_rng(0).permutation(len(items))[:ITEMS]]
        self.calibration = read_samples(FOLDER)
        self.scales = kv_scales(self.checkpoint, self.calibration, folder, THREADS, quiet)
        asked = [Sample(messages(item), item.reply) for item in self.items]
        self.held_out = self._steps(asked)

    def _steps(self, samples: Sequence[Sample]) -> list[Steps]:
        return thinker_steps(self.checkpoint, self.checkpoint, samples, self.folder, THREADS, quiet)

    def logits(self, cache: CacheShape, first_position: int = 0) -> Array:
        """At every position from which a token of a reply is drawn."""
        written = write_component(thinker_graph(self.config, STYLE, cache), Reader(self.checkpoint), self.folder)
        session = open_session(self.folder / written.graph, SessionSettings(threads=THREADS))
        decoder = decoder_of(session, self.config, cache, "ort", 2048)
        found = []
        for it in self.held_out:
            decoder.reset()
            states = decoder.prefill(it.embeddings, it.position_ids + first_position).last_hidden_state
            found.append(states[it.prompt - 1 :] @ self.head.T)
        return np.concatenate(found)

    def right_answers(self, options: ExportOptions) -> int:
        """Of the items, with a bundle exported so."""
        export_bundle(CHECKPOINT, self.folder / "bundle", replace(options, overwrite=True))
        omni = Omni.load(self.folder / "bundle", threads=THREADS)
        right = 0
        for item in self.items:
            events = omni.respond(messages(item), speak=False, max_tokens=MAX_TOKENS)
            (end,) = [event for event in events if isinstance(event, TurnEnd)]
            right += end.text.strip() == item.reply
        return right

    def keys_and_values(self) -> tuple[Array, Array]:
        """All that the calibration data gives, `(layers, kv_heads, N, head_dim)` each."""
        given = [decoder_given(self.config, it) for it in self._steps(self.calibration)]
        states, keys, values = [it.hidden for it in given], [], []
        for layer in range(self.config.layers):
            session = open_component(self.checkpoint, layer_graph("thinker", self.config, layer), self.folder, THREADS)
            runs = [session.run({"hidden": x, **it.others}) for x, it in zip(states, given, strict=True)]
            states = [run["result"] for run in runs]
            keys.append(np.concatenate([run["present.0.key"][0] for run in runs], axis=1))
            values.append(np.concatenate([run["present.0.value"][0] for run in runs], axis=1))
        return np.stack(keys), np.stack(values)


def nano() -> None:
    """Answers and errors by type, then errors by choice of scales."""
    with tempfile.TemporaryDirectory() as folder:
        model = Nano(Path(folder))
        shape = model.config.cache
        exact = {first: model.logits(shape, first) for first in (0, FAR)}

        def line(label: str, cache: CacheShape, first: int = 0) -> str:
            found = model.logits(cache, first)
            changed = int((found.argmax(-1) != exact[first].argmax(-1)).sum())
            return f"{label:44}{first:>8,}{relative_error(found, exact[first]):>11.1e}{changed:>6} of {len(found):,}"

        print(f"nano, float32, onnxruntime {onnxruntime.__version__}; {ITEMS} held-out items, calibrated on 128")
        head = f"{'cache':44}{'starts at':>8}{'error of':>11}{'tokens':>8}{'right':>14}"
        print(f"{head}\n{'':44}{'':>8}{'logits':>11}{'changed':>8}{'answers':>14}")
        int8 = replace(shape, dtype="int8", scales=model.scales["thinker"])
        for kind, cache in (("same", shape), ("float16", replace(shape, dtype="float16")), ("int8", int8)):
            scales = model.scales if kind == "int8" else {}
            right = model.right_answers(ExportOptions(bits=32, kv_cache=kind, kv_scales=scales))
            print(f"{line(kind, cache)}{right:>6} of {ITEMS}", flush=True)

        print("\nint8, scales of keys and values by")
        keys, values = (np.abs(it) for it in model.keys_and_values())
        pairs = np.hypot(*np.split(keys, 2, axis=-1))
        for name, seen in (("each channel alone", keys), ("rotary pairs", np.concatenate([pairs, pairs], axis=-1))):
            choices = [("largest", lambda it: it.max(axis=2), margin) for margin in (1.0, 1.05, 1.2, 1.5, 4.0, 0.25)]
            choices += [
                (f"{100 * share:g} %", lambda it, share=share: np.quantile(it, share, axis=2), 1.05)
                for share in (0.9999, 0.999)
            ]
            for how, statistic, margin in choices:
                found = [(statistic(it) * margin / LARGEST_CODE).astype(np.float32) for it in (seen, values)]
                cache = replace(int8, scales=CacheScales(*found))
                for first in (0, FAR) if margin == 1.05 and how == "largest" else (0,):
                    print(line(f"{name}, {how} × {margin:g}", cache, first), flush=True)


class Attention(Module):
    """The attention of all layers and nothing else."""

    def __init__(self, style: Style, config: DecoderConfig, cache: CacheShape) -> None:
        super().__init__()
        self.style, self.config, self.cache = style, config, cache

    def forward(self, op: Op, query: Value, key: Value, value: Value, *cache: Value) -> list[Value]:
        """Return the last layer's result and the present cache."""
        present = []
        for layer in split_cache_inputs(self.style, self.cache.layers, cache, self.cache.scales):
            out, *kept = cached_attention(
                op, self.style, query, key, value, layer, self.config.heads, self.config.kv_heads
            )
            present += kept
            query = out
        return [out, *present]


def attention_graph(style: Style, config: DecoderConfig, cache: CacheShape) -> ComponentGraph:
    """Queries, keys and values of a position in, as wide as those of `config`."""
    widths = {"query": config.heads, "key": config.kv_heads, "value": config.kv_heads}
    ports = [Port(name, style.dtype, (1, "positions", heads * config.head_dim)) for name, heads in widths.items()]
    root = Attention(style, config, cache)
    inputs, outputs = [*ports, *cache.input_ports(style)], [ports[0], *cache.output_ports(style)]
    outputs[0] = replace(outputs[0], name="result")
    return ComponentGraph("thinker", build(root, style, "attention", inputs, outputs), root, "")


def open_graph(component: ComponentGraph, folder: Path) -> Session:
    """Write with noise for weights and load, with a cache that will be noise."""
    folder.mkdir()
    write_component(component, Noise(), folder)
    session = open_session(folder / f"{component.name}.onnx", SessionSettings(threads=THREADS))
    session.memory = NoisyMemory("cpu")
    return session


class AttentionAlone:
    """Steps of `attention_graph`, its cache bound as the decoder binds it."""

    def __init__(self, session: Session, config: DecoderConfig, cache: CacheShape, context: int) -> None:
        self.session, self.binding, self.config, self.length = session, session.binding(), config, 0
        shape = (1, config.kv_heads, context, config.head_dim)
        for name in (name for name in session.input_names if name.startswith("past_key_values.")):
            buffer = session.memory.zeros(shape, np.dtype(cache.dtype or "float32"))
            self.binding.bind_ortvalue_input(name, buffer)
            self.binding.bind_ortvalue_output(name.replace("past_key_values", "present"), buffer)
        self.binding.bind_output("result")

    def fill(self, length: int) -> None:
        """Go on after `length` positions."""
        self.length = length

    def step(self) -> None:
        """One position."""
        for name, heads in (("query", 16), ("key", 2), ("value", 2)):
            self.binding.bind_cpu_input(name, np.ones((1, 1, heads * self.config.head_dim), np.float32))
        self.binding.bind_cpu_input("seqlens_k", np.array([self.length], np.int32))
        self.binding.bind_cpu_input("total_sequence_length", np.array(self.length + 1, np.int32))
        self.session.run_bound(self.binding)
        self.length += 1


def timed_ms(step: Callable[[], object]) -> float:
    """Median of a few steps, after others."""
    times = []
    for _ in range(WARM_STEPS + STEPS):
        began = time.perf_counter()
        step()
        times.append(1000 * (time.perf_counter() - began))
    return median(times[WARM_STEPS:])


def steps() -> None:
    """A line a case: ms at each length, and a straight line through them."""
    config, shape = MODEL_3B, MODEL_3B.cache
    scales = np.full((config.layers, config.kv_heads, config.head_dim), 0.03, np.float32)
    caches = {
        "float32": shape,
        "float16": replace(shape, dtype="float16"),
        "int8": replace(shape, dtype="int8", scales=CacheScales(scales, scales)),
    }
    cases: dict[str, tuple[Callable[[int], None], Callable[[], object]]] = {}
    with tempfile.TemporaryDirectory() as directory:
        for kind, cache in caches.items():
            style, folder = Style("ort", "float32", bits=4), Path(directory)
            whole = open_graph(thinker_graph(config, style, cache), folder / kind)
            cases[kind] = stepping(decoder_of(whole, config, cache, "ort", CONTEXT))
            attention = open_graph(attention_graph(style, config, cache), folder / f"{kind}-alone")
            for context in (*SMALLER_CONTEXTS, CONTEXT):
                alone = AttentionAlone(attention, config, cache, context)
                cases[f"{kind}, attention alone, {context}"] = (alone.fill, alone.step)
        growing = open_graph(thinker_graph(config, Style("standard", "float32", bits=4)), folder / "standard")
        cases["float32, dialect standard"] = stepping(decoder_of(growing, config, shape, "standard", CONTEXT))

        small = tuple(str(context) for context in SMALLER_CONTEXTS)
        times: dict[tuple[str, int], list[float]] = {
            (case, n): [] for case in cases for n in POSITIONS if n == POSITIONS[0] or not case.endswith(small)
        }
        for _ in range(ROUNDS):
            for (case, length), taken in times.items():
                fill, step = cases[case]
                fill(length)
                taken.append(timed_ms(step))
    found = {case: np.array([median(times[case, n]) for n in POSITIONS if (case, n) in times]) for case in cases}
    rows = {}
    for kind in caches:
        whole, alone = found[kind], found[f"{kind}, attention alone, {CONTEXT}"]
        rows |= {f"{kind}, a step": whole, f"{kind}, attention alone": alone, f"{kind}, all else": whole - alone}
    rows["float32, a step, dialect standard"] = found["float32, dialect standard"]
    print(f"\nms a step, two layers of 3B's widths, INT4, {THREADS} threads, {platform.machine()}, "
          f"onnxruntime {onnxruntime.__version__}; medians of {ROUNDS} rounds")  # fmt: skip
    print(f"{'positions in the cache':36}" + "".join(f"{n:>9,}" for n in POSITIONS) + "   fitted line")
    for label, values in rows.items():
        slope, start = np.polyfit(POSITIONS, values, 1)
        line = f"{start:.2f} + {1000 * slope:.4f} per 1000 positions"
        print(f"{label:36}" + "".join(f"{value:>9.2f}" for value in values) + f"   {line}", flush=True)
    for kind, cache in caches.items():
        read = 2 * config.layers * config.kv_heads * config.head_dim * np.dtype(cache.dtype or "float32").itemsize
        print(f"{kind + ', MB read':36}" + "".join(f"{read * n / 1e6:>9.2f}" for n in POSITIONS))
    contexts = (*SMALLER_CONTEXTS, CONTEXT)
    print(f"\nms, attention alone after {POSITIONS[0]} positions\n"
          f"{'positions allocated':36}" + "".join(f"{context:>9,}" for context in contexts))  # fmt: skip
    for kind in caches:
        taken = [found[f"{kind}, attention alone, {context}"][0] for context in contexts]
        print(f"{kind:36}" + "".join(f"{value:>9.2f}" for value in taken))


def stepping(decoder: Filled) -> tuple[Callable[[int], None], Callable[[], object]]:
    """How a decoder is put somewhere, and makes a step."""
    embedding = np.random.default_rng(1).standard_normal(MODEL_3B.hidden_size).astype(np.float32)
    return decoder.fill, lambda: decoder.step(embedding, decoder.length)


if __name__ == "__main__":
    {"nano": nano, "steps": steps}[sys.argv[1]]()
