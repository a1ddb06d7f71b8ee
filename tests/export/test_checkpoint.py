"""Checkpoints: the reference's own tensors in both spellings, one file or several, tied or not, and every damage."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import SMALL_3B, write_checkpoint
from nearfield.errors import CheckpointError
from nearfield.export.checkpoint import Checkpoint, canonical_name
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5OmniForConditionalGeneration

HEAD, EMBEDDING = "thinker.lm_head.weight", "thinker.model.embed_tokens.weight"
INDEX = "model.safetensors.index.json"


def _config(**changes: Any) -> dict[str, Any]:
    return {"model_type": "qwen2_5_omni", "thinker_config": {"text_config": {}}, **changes}


def _write(path: Path, tensors: dict[str, torch.Tensor], **changes: Any) -> Path:
    """A directory with nothing but a configuration and one file of tensors."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(_config(**changes)), encoding="utf-8")
    save_file(tensors, path / "model.safetensors")
    return path


def _write_shards(path: Path, shards: dict[str, list[str]]) -> Path:
    """A directory with an index and shards, each tensor filled with the number of its shard."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(_config()), encoding="utf-8")
    for number, (shard, names) in enumerate(shards.items()):
        save_file({name: torch.full((2,), float(number)) for name in names}, path / shard)
    weight_map = {name: shard for shard, names in shards.items() for name in names}
    (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8")
    return path


# Against the reference


@pytest.mark.parametrize("size", ["3b", "7b"])
def test_holds_every_parameter_of_the_reference(request: pytest.FixtureRequest, size: str) -> None:
    checkpoint = Checkpoint.open(request.getfixturevalue(f"checkpoint_{size}"))
    reference: Qwen2_5OmniForConditionalGeneration = request.getfixturevalue(f"reference_{size}")
    parameters = {canonical_name(name): tensor for name, tensor in reference.named_parameters(remove_duplicate=False)}
    assert checkpoint.names == set(parameters)
    assert checkpoint.head_is_tied == (size == "3b")
    for name, tensor in parameters.items():
        assert checkpoint.shape(name) == tuple(tensor.shape)
        array = checkpoint.read(name)
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, tensor.detach().numpy(), err_msg=name)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_reads_half_precision_and_the_published_spelling(tmp_path: Path, dtype: str) -> None:
    path = write_checkpoint(tmp_path, SMALL_3B, dtype=dtype, published_spelling=True, max_shard_bytes=2_000_000)
    checkpoint = Checkpoint.open(path)
    shards = sorted(path.glob("model-*.safetensors"))
    assert len(shards) > 1
    stored = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    assert checkpoint.names == {*stored, HEAD}  # published names need no rewriting
    for name, tensor in stored.items():
        array = checkpoint.read(name)
        assert array.dtype == (np.float16 if tensor.dtype == torch.float16 else np.float32)
        np.testing.assert_array_equal(array, tensor.float().numpy())
    assert checkpoint.config.section("token2wav_config").section("dit_config").has("depth")


def test_reads_the_names_transformers_has_in_memory(tmp_path: Path, checkpoint_7b: Path) -> None:
    reference = Qwen2_5OmniForConditionalGeneration.from_pretrained(checkpoint_7b, dtype="float32")
    names = set(reference.state_dict())
    assert any(name.startswith("thinker.model.language_model.") for name in names)
    assert any(name.startswith("thinker.model.visual.") for name in names)
    shutil.copy(checkpoint_7b / "config.json", tmp_path)
    save_file(reference.state_dict(), tmp_path / "model.safetensors")
    in_memory, published = Checkpoint.open(tmp_path), Checkpoint.open(checkpoint_7b)
    assert in_memory.names == published.names
    for name in published.names:
        np.testing.assert_array_equal(in_memory.read(name), published.read(name))


@pytest.mark.parametrize(
    ("stored", "canonical"),
    [
        ("thinker.model.language_model.layers.3.mlp.up_proj.weight", "thinker.model.layers.3.mlp.up_proj.weight"),
        ("thinker.model.language_model.embed_tokens.weight", EMBEDDING),
        ("thinker.model.language_model.norm.weight", "thinker.model.norm.weight"),
        ("thinker.model.audio_tower.conv1.bias", "thinker.audio_tower.conv1.bias"),
        ("thinker.model.visual.merger.ln_q.weight", "thinker.visual.merger.ln_q.weight"),
        ("thinker.audio_tower.conv1.bias", "thinker.audio_tower.conv1.bias"),
        (HEAD, HEAD),
        ("talker.model.layers.0.mlp.up_proj.weight", "talker.model.layers.0.mlp.up_proj.weight"),
        ("talker.model.language_model.norm.weight", "talker.model.language_model.norm.weight"),
        ("token2wav.code2wav_dit_model.proj_out.bias", "token2wav.code2wav_dit_model.proj_out.bias"),
    ],
)
def test_names_become_the_published_ones(stored: str, canonical: str) -> None:
    assert canonical_name(stored) == canonical


# Reading


@pytest.mark.parametrize("rows_at_once", [1, 3, 7, 8])
def test_rows_cover_a_tensor_once(tmp_path: Path, rows_at_once: int) -> None:
    tensor = torch.arange(35.0).reshape(7, 5).bfloat16()
    checkpoint = Checkpoint.open(_write(tmp_path, {"a": torch.ones(3), "t": tensor}))
    blocks = list(checkpoint.rows("t", rows_at_once))
    assert [start for start, _ in blocks] == list(range(0, 7, rows_at_once))
    assert all(len(rows) <= rows_at_once for _, rows in blocks)
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in blocks]), tensor.float().numpy())


def test_a_tensor_that_is_not_there_is_named(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(_write(tmp_path, {"a": torch.ones(3)}))
    with pytest.raises(CheckpointError, match=re.escape(f"{tmp_path} has no tensor b; expected a complete")):
        checkpoint.read("b")


def test_an_integer_tensor_is_refused_when_read(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(_write(tmp_path, {"a": torch.ones(3, dtype=torch.int64), "b": torch.ones(1)}))
    assert checkpoint.read("b") == 1
    with pytest.raises(CheckpointError, match=r"tensor a in .*model\.safetensors has dtype I64; expected F32, F16"):
        checkpoint.read("a")


# The head


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"tie_word_embeddings": False},  # the whole model's entry has no head to speak of
        {"thinker_config": {"tie_word_embeddings": True, "text_config": {"tie_word_embeddings": False}}},
        {"thinker_config": {"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}},
    ],
)
def test_an_absent_head_is_the_embedding(tmp_path: Path, config: dict[str, Any]) -> None:
    checkpoint = Checkpoint.open(_write(tmp_path, {EMBEDDING: torch.arange(6.0).reshape(3, 2)}, **config))
    assert checkpoint.head_is_tied
    assert checkpoint.names == {HEAD, EMBEDDING}
    assert checkpoint.shape(HEAD) == (3, 2)
    np.testing.assert_array_equal(checkpoint.read(HEAD), [[0, 1], [2, 3], [4, 5]])


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_that_is_there_is_used_whatever_the_configuration_says(tmp_path: Path, tied: bool) -> None:
    thinker = {"tie_word_embeddings": tied, "text_config": {"tie_word_embeddings": tied}}
    tensors = {EMBEDDING: torch.zeros(3, 2), HEAD: torch.ones(3, 2)}
    checkpoint = Checkpoint.open(_write(tmp_path, tensors, thinker_config=thinker))
    assert not checkpoint.head_is_tied
    np.testing.assert_array_equal(checkpoint.read(HEAD), 1)
    np.testing.assert_array_equal(checkpoint.read(EMBEDDING), 0)


def test_an_absent_head_is_refused_where_the_configuration_unties_it(tmp_path: Path) -> None:
    thinker = {"tie_word_embeddings": False, "text_config": {}}
    _write(tmp_path, {EMBEDDING: torch.zeros(3, 2)}, thinker_config=thinker)
    with pytest.raises(
        CheckpointError, match=f"has no tensor {HEAD}, though .* tie_word_embeddings is false; download"
    ):
        Checkpoint.open(tmp_path)


# What is not a checkpoint


def test_a_path_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is not a directory; expected a Qwen2\.5-Omni checkpoint.*hf download"):
        Checkpoint.open(tmp_path / "Qwen2.5-Omni-3B")


def test_a_directory_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=re.escape(f"{tmp_path} has no config.json; expected the directory")):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("model_type", ["qwen3_omni_moe", "qwen2_5_omni_thinker", None])
def test_another_model_is_refused_by_name(tmp_path: Path, model_type: str | None) -> None:
    _write(tmp_path, {"a": torch.ones(1)}, model_type=model_type)
    with pytest.raises(CheckpointError, match=f"holds a model of type {model_type!r}; expected 'qwen2_5_omni'"):
        Checkpoint.open(tmp_path)


def test_a_damaged_configuration_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, {"a": torch.ones(1)})
    (tmp_path / "config.json").write_text('{"model_type": ', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"config\.json is not valid JSON .*; download the file again"):
        Checkpoint.open(tmp_path)


def test_a_directory_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(_config()), encoding="utf-8")
    (tmp_path / "pytorch_model.bin").write_bytes(b"weights")
    with pytest.raises(
        CheckpointError, match=r"neither model\.safetensors\.index\.json nor model\.safetensors; expected"
    ):
        Checkpoint.open(tmp_path)


# Damage


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    _write_shards(tmp_path, {"model-1.safetensors": ["a"], "model-2.safetensors": ["b"]})
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=re.escape(f"{tmp_path / 'model-2.safetensors'} is missing; download")):
        Checkpoint.open(tmp_path)


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    _write_shards(tmp_path, {"model-1.safetensors": ["a"], "model-2.safetensors": ["b"]})
    shard = tmp_path / "model-2.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model-2\.safetensors is damaged or incomplete: .*; download the file"):
        Checkpoint.open(tmp_path)


def test_a_tensor_the_index_misplaces_is_named(tmp_path: Path) -> None:
    _write_shards(tmp_path, {"model-1.safetensors": ["a"], "model-2.safetensors": ["b"]})
    index = json.loads((tmp_path / INDEX).read_text(encoding="utf-8"))
    index["weight_map"]["c"] = "model-2.safetensors"
    (tmp_path / INDEX).write_text(json.dumps(index), encoding="utf-8")
    message = "places tensor c in model-2.safetensors, which does not hold it; download both again"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("change", [lambda index: index.clear(), lambda index: index.update(weight_map={"a": 1})])
def test_an_index_without_its_map_is_refused(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    _write_shards(tmp_path, {"model-1.safetensors": ["a"]})
    index: dict[str, Any] = json.loads((tmp_path / INDEX).read_text(encoding="utf-8"))
    change(index)
    (tmp_path / INDEX).write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"index\.json has no weight_map of tensors to files; download the file"):
        Checkpoint.open(tmp_path)


def test_a_tensor_in_two_shards_is_named(tmp_path: Path) -> None:
    _write_shards(tmp_path, {"model-1.safetensors": ["a", "c"], "model-2.safetensors": ["a", "b"]})
    message = f"{tmp_path} holds tensor a twice: as a in model-1.safetensors and as a in model-2.safetensors; download"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        Checkpoint.open(tmp_path)


def test_a_tensor_in_two_spellings_is_named(tmp_path: Path) -> None:
    other = "thinker.model.language_model.embed_tokens.weight"
    _write(tmp_path, {EMBEDDING: torch.ones(2), other: torch.ones(2)})
    with pytest.raises(CheckpointError, match=re.escape(f"holds tensor {EMBEDDING} twice: as ")):
        Checkpoint.open(tmp_path)
