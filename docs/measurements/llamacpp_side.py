"""llama.cpp's side of against_llamacpp.py, in an environment of its own: a language model of noise in Q4_0.

    python llamacpp_side.py write|serve SHAPE NAME FOLDER

`write` needs gguf, `serve` llama-cpp-python. Both sides answer the same requests (`serve`). Linux.
"""

import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

THREADS = 2
CONTEXT = 4096
CHUNK = 512
"""Positions in one run of a prefill: the runtime's, and llama.cpp's own."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a Thinker."""

    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    intermediate_size: int
    vocab_size: int
    head_dim: int = 128


SHAPES = {
    "3b": Shape(2048, 36, 16, 2, 11008, 151936),
    "tiny": Shape(256, 3, 2, 1, 512, 1024),  # to try the scripts with
}


class Side(Protocol):
    """A language model in the middle of a sequence."""

    def truncate(self, length: int) -> None:
        """Forget all positions from `length` on."""
        ...

    def feed(self, token_ids: np.ndarray) -> None:
        """Append tokens; when this returns, the logits of the last are there."""
        ...


def serve(side: Side, vocab_size: int) -> None:
    """Say that the model is loaded, then answer requests on standard input.

    Each is `past count at_once`, and its answer the seconds that feeding `count` tokens after `past` takes, `at_once`
    at a time. When the input ends, the last answer is the most memory this process has held, in bytes.
    """
    random = np.random.default_rng(0)
    print("ready", flush=True)
    for line in sys.stdin:
        past, count, at_once = map(int, line.split())
        side.truncate(past)
        tokens = random.integers(0, vocab_size, count)
        started = time.perf_counter()
        for start in range(0, count, at_once):
            side.feed(tokens[start : start + at_once])
        print(time.perf_counter() - started, flush=True)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)  # Linux counts in KiB


class LlamaCpp:
    """A GGUF file in llama.cpp, with its own defaults; logits are those of the last position."""

    def __init__(self, path: Path) -> None:
        import llama_cpp

        self._api = llama_cpp
        self._said = llama_cpp.llama_log_callback(lambda *_: None)  # held, as C does not
        llama_cpp.llama_log_set(self._said, None)
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = CONTEXT
        settings.n_batch = settings.n_ubatch = CHUNK
        settings.n_threads = settings.n_threads_batch = THREADS
        self._context = llama_cpp.llama_init_from_model(self._model, settings)
        if not self._context:
            raise MemoryError(f"llama.cpp cannot run {path}")

    def truncate(self, length: int) -> None:
        """Forget all positions from `length` on."""
        self._api.llama_memory_seq_rm(self._api.llama_get_memory(self._context), 0, length, -1)

    def feed(self, token_ids: np.ndarray) -> None:
        """Append tokens."""
        for start in range(0, len(token_ids), CHUNK):
            chunk = token_ids[start : start + CHUNK]
            tokens = (self._api.llama_token * len(chunk))(*chunk.tolist())
            if self._api.llama_decode(self._context, self._api.llama_batch_get_one(tokens, len(chunk))):
                raise RuntimeError("llama.cpp could not decode")
        self._api.llama_synchronize(self._context)


def write(shape: Shape, path: Path) -> None:
    """Write a model of noise: every matrix in Q4_0, norms and biases in float32, the head tied to the embedding."""
    import gguf

    random, writer = np.random.default_rng(0), gguf.GGUFWriter(path, "qwen2", use_temp_file=True)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(shape.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_tokenizer_model("none")

    def matrix(name: str, rows: int, columns: int) -> None:
        blocks = random.integers(0, 256, (rows, columns // 32, 18), np.uint8)  # a float16 scale, then 32 codes
        blocks[:, :, :2] = np.array([0.0043], np.float16).view(np.uint8)  # codes are −8 … 7: about ±0.02
        writer.add_tensor(name, blocks.reshape(rows, -1), raw_dtype=gguf.GGMLQuantizationType.Q4_0)

    def vector(name: str, value: float, length: int) -> None:
        writer.add_tensor(name, np.full(length, value, np.float32))

    width, kv_width = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    matrix("token_embd.weight", shape.vocab_size, shape.hidden_size)
    vector("output_norm.weight", 1, shape.hidden_size)
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        vector(block + "attn_norm.weight", 1, shape.hidden_size)
        vector(block + "ffn_norm.weight", 1, shape.hidden_size)
        for letter, rows in (("q", width), ("k", kv_width), ("v", kv_width)):
            matrix(f"{block}attn_{letter}.weight", rows, shape.hidden_size)
            vector(f"{block}attn_{letter}.bias", 0, rows)
        matrix(block + "attn_output.weight", shape.hidden_size, width)
        matrix(block + "ffn_gate.weight", shape.intermediate_size, shape.hidden_size)
        matrix(block + "ffn_up.weight", shape.intermediate_size, shape.hidden_size)
        matrix(block + "ffn_down.weight", shape.hidden_size, shape.intermediate_size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    task, shape, path = sys.argv[1], SHAPES[sys.argv[2]], Path(sys.argv[4]) / "model.gguf"
    if task == "write":
        write(shape, path)
    else:
        serve(LlamaCpp(path), shape.vocab_size)
