"""Write a checkpoint of the published size and format with random weights: 3B about 10 GB, 7B about 22 GB.

    python docs/measurements/full_size_checkpoint.py 3b DIRECTORY

Names and shapes come from the reference model on the meta device, values are bfloat16 noise of a Linear layer's size,
so that everything that reads a real checkpoint can be measured without one. Talker sizes of 3B are as publicly
reported.
Needs the extra `[test]`, and the test tree for the tokenizer and processor files.
"""

import argparse
import json
import struct
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import torch
from checkpoint_tokenizer import token_ids, write_processor_files
from nearfield.nano.published import talker_tokens, thinker_tokens
from reference import load_model  # noqa: F401  # first of all that imports transformers: it settles torchvision
from transformers import Qwen2_5OmniConfig, Qwen2_5OmniForConditionalGeneration
from transformers.utils import logging

SHARD_BYTES = 4 << 30
ROPE = {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [16, 24, 24]}
SIZES = {
    "3b": {
        "text": {"hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2,
                 "intermediate_size": 11008, "vocab_size": 151936, "tie_word_embeddings": True},
        "talker": {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
                   "head_dim": 64, "intermediate_size": 4864, "embedding_size": 2048,
                   "rope_parameters": ROPE | {"mrope_section": [16, 16, 0]}},
    },
    "7b": {
        "text": {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
                 "intermediate_size": 18944, "vocab_size": 152064, "tie_word_embeddings": False},
        "talker": {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 12, "num_key_value_heads": 4,
                   "head_dim": 128, "intermediate_size": 18944, "embedding_size": 3584, "rope_parameters": ROPE},
    },
}  # fmt: skip


def build_config(size: str) -> Qwen2_5OmniConfig:
    """Configuration of the published size."""
    ids = token_ids()  # of a tokenizer much smaller than the published one, in the published files
    text, talker = SIZES[size]["text"], SIZES[size]["talker"]
    width = text["hidden_size"]
    return Qwen2_5OmniConfig(
        thinker_config={
            "text_config": text | {"rope_parameters": ROPE, "eos_token_id": ids.im_end},
            "audio_config": {"encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120,
                             "d_model": 1280, "output_dim": width},
            "vision_config": {"depth": 32, "hidden_size": 1280, "num_heads": 16, "intermediate_size": 3420,
                              "out_hidden_size": width},
            "tie_word_embeddings": text["tie_word_embeddings"], **thinker_tokens(ids),
        },
        talker_config=talker | {"vocab_size": 8448} | talker_tokens(ids),
        token2wav_config={},
    )  # fmt: skip


def main() -> None:
    """Write config, shards with their index, voices, tokenizer and processor files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("directory", type=Path)
    args = parser.parse_args()
    logging.set_verbosity_error()
    directory: Path = args.directory
    directory.mkdir(parents=True)
    config = build_config(args.size)
    with torch.device("meta"):
        model = Qwen2_5OmniForConditionalGeneration(config)
    shapes = {published_name(name): tuple(tensor.shape) for name, tensor in model.named_parameters()}
    if SIZES[args.size]["text"]["tie_word_embeddings"]:
        shapes.pop("thinker.lm_head.weight", None)
    config.save_pretrained(directory)
    write_processor_files(directory)
    bos = token_ids().voice_chelsie
    voice = {"cond": torch.randn(1, 192), "ref_mel": torch.randn(1, 400, 80) - 5, "bos_token": bos}
    torch.save({"Chelsie": voice, "Ethan": voice}, directory / "spk_dict.pt")
    write_shards(directory, shapes)


def published_name(name: str) -> str:
    """Name of a parameter in published files."""
    name = name.replace("thinker.model.language_model.", "thinker.model.")
    return name.replace("thinker.model.audio_tower.", "thinker.audio_tower.").replace(
        "thinker.model.visual.", "thinker.visual."
    )


def write_shards(directory: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Write every tensor as bfloat16 noise.

    One block of noise repeats through a shard; its odd length makes no two layers equal, since ONNX Runtime would share
    equal packed weights and measure too little memory.
    """
    noise = torch.randn((1 << 22) + 12_347, generator=torch.Generator().manual_seed(0)).mul(0.02).bfloat16()
    block = noise.view(torch.uint8).numpy()
    weight_map: dict[str, str] = {}
    shard: dict[str, tuple[int, ...]] = {}
    number = 0

    def flush() -> None:
        nonlocal shard, number
        number += 1
        name = f"model-{number:05d}.safetensors"
        header, offset = {}, 0
        for tensor, shape in shard.items():
            end = offset + 2 * int(np.prod(shape))
            header[tensor] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
            weight_map[tensor] = name
            offset = end
        encoded = json.dumps(header).encode()
        encoded += b" " * (-len(encoded) % 8)
        with (directory / name).open("wb") as file:
            file.write(struct.pack("<Q", len(encoded)) + encoded)
            for start in range(0, offset, len(block)):
                file.write(block[: min(len(block), offset - start)].data)
        shard = {}

    for name, shape in shapes.items():
        shard[name] = shape
        if sum(2 * int(np.prod(s)) for s in shard.values()) > SHARD_BYTES:
            flush()
    flush()
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


if __name__ == "__main__":
    main()
