"""A checkpoint becomes a whole bundle or nothing, whatever spelling, sharding and type its files have."""

import json
import math
import shutil
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from checkpoints import SMALL_3B, SMALL_7B, Shape, write_checkpoint
from nearfield.errors import BundleError, CheckpointError, ExportError
from nearfield.export.checkpoint import Checkpoint
from nearfield.export.config import Section
from nearfield.export.export import ExportOptions, _eos_token_ids, _expected_bytes, export_bundle
from nearfield.runtime.bundle import Bundle
from safetensors.numpy import load_file, save_file

INT4 = ExportOptions(bits=4)
COMPONENTS = {"audio_encoder", "vision_encoder", "thinker", "talker", "dit", "vocoder"}


def test_the_bundle_is_whole_and_describes_itself(checkpoint_7b: Path, tmp_path: Path) -> None:
    export_bundle(checkpoint_7b, tmp_path / "bundle", INT4)
    bundle = Bundle.open(tmp_path / "bundle")
    bundle.check()
    manifest = bundle.manifest
    assert set(manifest.components) == COMPONENTS
    assert set(manifest.voices) == {"Chelsie", "Ethan"}
    config = json.loads((checkpoint_7b / "config.json").read_text())
    assert manifest.thinker.eos_token_ids == [config["thinker_config"]["eos_token_id"]]
    assert manifest.tokens.video == config["thinker_config"]["video_token_index"]
    assert manifest.talker.codec_pad_token_id == config["talker_config"]["tts_codec_pad_token_id"]
    assert len(manifest.token2wav.ode.times) == 28
    sizes = {name: component.parameters for name, component in manifest.components.items()}
    tensors = {name: math.prod(shape) for name, shape in _shapes(checkpoint_7b).items()}
    heard = sum(size for name, size in tensors.items() if name.startswith("thinker.audio_tower."))
    assert sizes["audio_encoder"] == heard - tensors["thinker.audio_tower.audio_bos_eos_token.weight"]
    written = sum(
        size for name, size in tensors.items() if name.startswith(("thinker.model.layers.", "thinker.lm_head"))
    )
    assert sizes["thinker"] == written + tensors["thinker.model.norm.weight"]
    assert (manifest.audio.block_frames, manifest.audio.max_frames) == (200, 3000)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_bits_choose_types(checkpoint_3b: Path, tmp_path: Path) -> None:
    expected: dict[Literal[4, 16, 32], tuple[str, int | None]] = {
        32: ("float32", None),
        16: ("float16", None),
        4: ("float16", 4),
    }
    for bits, (dtype, quantized_bits) in expected.items():
        manifest = export_bundle(checkpoint_3b, tmp_path / str(bits), ExportOptions(bits=bits))
        for name in ("thinker", "talker"):
            component = manifest.components[name]
            assert component.dtype == dtype
            assert (component.quantization.bits if component.quantization else None) == quantized_bits
        assert manifest.components["audio_encoder"].dtype == dtype
        speech = {manifest.components["dit"].dtype, manifest.components["vocoder"].dtype}
        assert speech == {"float32"}, "the reference runs Token2Wav in float32 alone"
    sizes = {bits: (tmp_path / str(bits) / "thinker.data").stat().st_size for bits in expected}
    assert sizes[4] < sizes[16] < sizes[32]


@pytest.mark.parametrize("bits", [4, 16, 32])
def test_the_room_asked_for_is_about_what_the_weights_take(
    checkpoint_3b: Path, tmp_path: Path, bits: Literal[4, 16, 32]
) -> None:
    options = ExportOptions(bits=bits)
    export_bundle(checkpoint_3b, tmp_path / "bundle", options)
    weights = [file for file in (tmp_path / "bundle").iterdir() if file.suffix in (".data", ".npy", ".safetensors")]
    taken = sum(file.stat().st_size for file in weights)  # graphs are small beside them in a checkpoint of real size
    assert _expected_bytes(Checkpoint.open(checkpoint_3b), options) == pytest.approx(taken, rel=0.1)


def test_token2wav_can_be_float16_on_its_own(checkpoint_3b: Path, tmp_path: Path) -> None:
    options = ExportOptions(bits=32, token2wav_float_type="float16")
    components = export_bundle(checkpoint_3b, tmp_path / "bundle", options).components
    half = {name for name, component in components.items() if component.dtype == "float16"}
    assert half == {"dit", "vocoder"}


def test_every_special_token_is_the_configurations(checkpoint_3b: Path, tmp_path: Path) -> None:
    manifest = export_bundle(checkpoint_3b, tmp_path / "bundle", INT4)
    config = json.loads((checkpoint_3b / "config.json").read_text())
    talker, thinker = config["talker_config"], config["thinker_config"]
    assert {
        "tts_codec_start_token_id": manifest.talker.codec_bos_token_id,
        "tts_codec_end_token_id": manifest.talker.codec_eos_token_id,
        "tts_codec_pad_token_id": manifest.talker.codec_pad_token_id,
        "tts_codec_mask_token_id": manifest.talker.codec_mask_token_id,
        "tts_text_end_token_id": manifest.talker.text_eos_token_id,
        "tts_text_pad_token_id": manifest.talker.text_pad_token_id,
    }.items() <= talker.items()
    assert {
        "audio_token_index": manifest.tokens.audio,
        "audio_start_token_id": manifest.tokens.audio_bos,
        "audio_end_token_id": manifest.tokens.audio_eos,
        "image_token_index": manifest.tokens.image,
        "video_token_index": manifest.tokens.video,
        "vision_start_token_id": manifest.tokens.vision_bos,
        "vision_end_token_id": manifest.tokens.vision_eos,
    }.items() <= thinker.items()


@pytest.mark.parametrize(("value", "expected"), [(7, [7]), ([7, 8], [7, 8]), (0, [0])])
def test_the_ids_that_end_a_reply_are_found_in_each_of_three_places(value: object, expected: list[int]) -> None:
    for place in ("thinker", "text", "config"):
        ends = {name: {"eos_token_id": value} if name == place else {} for name in ("thinker", "text", "config")}
        thinker = {"thinker_config": {"text_config": ends["text"], **ends["thinker"]}}
        assert _eos_token_ids(Section({**thinker, **ends["config"]}, "config.json")) == expected


def test_a_checkpoint_whose_replies_could_not_end_is_refused() -> None:
    config = Section({"thinker_config": {"eos_token_id": None, "text_config": {}}}, "config.json")
    with pytest.raises(CheckpointError, match=r"config\.json\.thinker_config has no eos_token_id"):
        _eos_token_ids(config)


@pytest.mark.parametrize("shape", [SMALL_3B, SMALL_7B])
def test_published_and_new_spelling_give_the_same_bundle(shape: Shape, tmp_path: Path) -> None:
    new = write_checkpoint(tmp_path / "new" / "model", shape)
    published = write_checkpoint(tmp_path / "published" / "model", shape, published_spelling=True)
    first = export_bundle(new, tmp_path / "a", ExportOptions(bits=32))
    second = export_bundle(published, tmp_path / "b", ExportOptions(bits=32))
    assert first == second


def test_float_types_and_sharding_of_the_files_do_not_matter_beyond_rounding(tmp_path: Path) -> None:
    for name, dtype, shard in (("whole", "bfloat16", None), ("sharded", "bfloat16", 1_000_000)):
        write_checkpoint(tmp_path / name / "model", SMALL_7B, dtype=dtype, max_shard_bytes=shard)
    assert len(list((tmp_path / "sharded" / "model").glob("*.safetensors"))) > 1
    whole = export_bundle(tmp_path / "whole" / "model", tmp_path / "a", ExportOptions(bits=32))
    assert whole == export_bundle(tmp_path / "sharded" / "model", tmp_path / "b", ExportOptions(bits=32))


def test_a_float16_checkpoint_exports(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "model", SMALL_3B, dtype="float16")
    table = Bundle.open(_export(checkpoint, tmp_path / "bundle")).thinker_embedding()
    assert table.dtype == np.float16
    np.testing.assert_array_equal(
        table, load_file(checkpoint / "model.safetensors")["thinker.model.embed_tokens.weight"]
    )


def test_progress_reaches_the_whole_checkpoint(checkpoint_3b: Path, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []

    def progress(component: str, done: int, total: int) -> None:
        calls.append((component, done, total))

    export_bundle(checkpoint_3b, tmp_path / "bundle", INT4, progress)
    tensors = load_file(checkpoint_3b / "model.safetensors")
    head = tensors["thinker.model.embed_tokens.weight"].size  # tied: taken as the head and as the table
    unused = tensors["thinker.audio_tower.audio_bos_eos_token.weight"].size
    everything = sum(tensor.size for tensor in tensors.values()) + head
    assert calls[-1][1:] == (everything - unused, everything)
    assert [done for _, done, _ in calls] == sorted({done for _, done, _ in calls})
    assert {component for component, _, _ in calls} == COMPONENTS


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("thinker.model.layers.1.mlp.up_proj.weight", ExportError, "has no tensor 'thinker.model.layers.1.mlp.up_proj"),
        ("token2wav.code2wav_dit_model.proj_out.bias", ExportError, "has no tensor 'token2wav.code2wav_dit_model.proj"),
        ("talker.model.embed_tokens.weight", CheckpointError, "has no tensor talker.model.embed_tokens.weight"),
    ],
)
def test_a_missing_tensor_leaves_nothing(
    checkpoint_3b: Path, tmp_path: Path, name: str, error: type[Exception], message: str
) -> None:
    broken = _copy(checkpoint_3b, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    del tensors[name]
    save_file(tensors, broken / "model.safetensors")
    with pytest.raises(error, match=message):
        _export(broken, _empty(tmp_path / "out") / "bundle")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_tensor_of_no_graph_leaves_nothing(checkpoint_3b: Path, tmp_path: Path) -> None:
    broken = _copy(checkpoint_3b, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["talker.model.layers.9.mlp.up_proj.weight"] = np.zeros((2, 2), np.float32)
    save_file(tensors, broken / "model.safetensors")
    with pytest.raises(ExportError, match=r"no graph has a place for: talker\.model\.layers\.9\.mlp\.up_proj\.weight"):
        _export(broken, _empty(tmp_path / "out") / "bundle")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("section", "key", "message"),
    [
        (("thinker_config", "text_config"), "num_hidden_layers", "text_config has no 'num_hidden_layers'"),
        (("talker_config",), "tts_codec_end_token_id", "talker_config has no 'tts_codec_end_token_id'"),
        (("token2wav_config",), "dit_config", "token2wav_config has no 'dit_config'"),
    ],
)
def test_an_incomplete_configuration_is_named_before_anything_is_written(
    checkpoint_3b: Path, tmp_path: Path, section: tuple[str, ...], key: str, message: str
) -> None:
    broken = _copy(checkpoint_3b, tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    values = config
    for name in section:
        values = values[name]
    del values[key]
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        _export(broken, _empty(tmp_path / "out") / "bundle")
    assert list((tmp_path / "out").iterdir()) == []


def test_missing_voices_are_named(checkpoint_3b: Path, tmp_path: Path) -> None:
    broken = _copy(checkpoint_3b, tmp_path / "broken")
    (broken / "spk_dict.pt").unlink()
    with pytest.raises(CheckpointError, match=r"spk_dict\.pt"):
        _export(broken, tmp_path / "bundle")


def test_an_existing_bundle_is_replaced_only_when_asked(checkpoint_3b: Path, tmp_path: Path) -> None:
    _export(checkpoint_3b, tmp_path / "bundle")
    with pytest.raises(BundleError, match="already there"):
        _export(checkpoint_3b, tmp_path / "bundle")
    export_bundle(checkpoint_3b, tmp_path / "bundle", ExportOptions(bits=32, overwrite=True))
    assert Bundle.open(tmp_path / "bundle").manifest.components["thinker"].dtype == "float32"


def _export(checkpoint: Path, target: Path) -> Path:
    export_bundle(checkpoint, target, INT4)
    return target


def _empty(directory: Path) -> Path:
    directory.mkdir()
    return directory


def _shapes(checkpoint: Path) -> dict[str, tuple[int, ...]]:
    shards = [load_file(path) for path in checkpoint.glob("*.safetensors")]
    return {name: tensor.shape for shard in shards for name, tensor in shard.items()}


def _copy(checkpoint: Path, target: Path) -> Path:
    return Path(shutil.copytree(checkpoint, target))
