"""A Qwen2.5-Omni checkpoint directory: its configuration, and its tensors one at a time under the published names.

Inputs: `config.json` with `model.safetensors`, or with shards and `model.safetensors.index.json` → outputs: arrays,
float32 (from float32 and bfloat16) or float16, and the codes of quantized layers. Prefixes: `thinker.model.`,
`thinker.lm_head.`, `thinker.audio_tower.`, `thinker.visual.`, `talker.model.`, `talker.thinker_to_talker_proj.`,
`talker.codec_head.`, `token2wav.code2wav_dit_model.`, `token2wav.code2wav_bigvgan_model.`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ..errors import CheckpointError
from ..quantize.packing import QuantizedWeight
from .config import Section, read_json
from .graph import WeightForm
from .quantized_checkpoint import QuantizedLayer, take_quantized_layers
from .safetensors_file import Array, Place, SafetensorsFile

_MODEL_TYPE = "qwen2_5_omni"
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_HEAD, _EMBEDDING = "thinker.lm_head.weight", "thinker.model.embed_tokens.weight"

# transformers 5.21 moved the parts of the Thinker in memory; files it writes keep the published names, others' may not.
_RENAMES = (
    (re.compile(r"^thinker\.model\.language_model\."), "thinker.model."),
    (re.compile(r"^thinker\.model\.(audio_tower|visual)\."), r"thinker.\1."),
)


class Checkpoint:
    """An opened checkpoint. Opening reads little but headers; every `read` goes to the file and keeps nothing.

    A layer that is stored quantized has a `weight` like any other: `read` dequantizes it, `quantized` has its codes.
    """

    def __init__(
        self, path: Path, config: Section, places: dict[str, Place], layers: dict[str, QuantizedLayer], *,
        head_is_tied: bool,
    ) -> None:  # fmt: skip
        self.path, self.config, self.head_is_tied = path, config, head_is_tied
        self._places, self._layers = places, layers

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Open the checkpoint in the directory `path`.

        Raises `CheckpointError` when the directory, a file or a tensor of the index is missing or damaged, when the
        model is another one, and when it is quantized in a way Nearfield cannot import.
        """
        config = read_config(path)
        places: dict[str, Place] = {}
        for file in _open_shards(path):
            for stored_name in file.tensors:
                name = canonical_name(stored_name)
                if name in places:
                    first = places[name]
                    raise CheckpointError(
                        f"{path} holds tensor {name} twice: as {first.name} in {first.file.path.name} and as "
                        f"{stored_name} in {file.path.name}; download the checkpoint again into an empty directory"
                    )
                places[name] = Place(file, stored_name)
        layers = take_quantized_layers(path, config, places)
        head_is_tied = _HEAD not in places and _HEAD not in layers and _EMBEDDING in places
        if head_is_tied:
            _check_tying(path, config)
            places[_HEAD] = places[_EMBEDDING]
        return cls(path, config, places, layers, head_is_tied=head_is_tied)

    @property
    def names(self) -> frozenset[str]:
        """Every tensor's published name; with a tied head, `thinker.lm_head.weight` is among them."""
        return frozenset(self._places).union(self._layers)

    @property
    def stored_forms(self) -> dict[str, WeightForm]:
        """How the quantized layers are quantized, by the layers' names."""
        return {layer.name: layer.form for layer in self._layers.values()}

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, known without reading it."""
        if name in self._layers:
            return self._layers[name].shape
        place = self._place(name)
        return place.file.tensors[place.name].shape

    def read(self, name: str) -> Array:
        """Return a tensor as a fresh array: float16 if stored so, else float32; any other type is an error."""
        if name in self._layers:
            return self._layers[name].read().dequantize()
        place = self._place(name)
        return place.file.read(place.name)

    def rows(self, name: str, rows_at_once: int) -> Iterator[tuple[int, Array]]:
        """Yield `(first row, rows)` of a tensor in blocks of `rows_at_once`, holding one block at a time.

        Of a quantized layer the codes are held, and one block of floats.
        """
        starts = range(0, self.shape(name)[0], rows_at_once)
        if name in self._layers:
            codes = self._layers[name].read()
            for start in starts:
                yield start, codes.of_rows(slice(start, start + rows_at_once)).dequantize()
            return
        place = self._place(name)
        for start in starts:
            yield start, place.file.read(place.name, start, start + rows_at_once)

    def quantized(self, name: str) -> QuantizedWeight:
        """Return the codes of the weight of a quantized layer."""
        return self._layers[name].read()

    @property
    def stored_names(self) -> frozenset[str]:
        """Names of the float tensors there are in the files: a tied head is not among them."""
        return frozenset(self._places) - ({_HEAD} if self.head_is_tied else frozenset())

    def stored_dtype(self, name: str) -> str:
        """Return the type a tensor is stored in, by the format's code: `F32`, `F16`, `BF16`."""
        place = self._place(name)
        return place.file.tensors[place.name].dtype

    def raw(self, name: str) -> Iterator[bytes]:
        """Yield the bytes of a tensor as they are stored, in pieces."""
        place = self._place(name)
        return place.file.raw(place.name)

    def _place(self, name: str) -> Place:
        place = self._places.get(name)
        if place is None:
            raise CheckpointError(
                f"{self.path} has no tensor {name}; expected a complete Qwen2.5-Omni checkpoint: download it again"
            )
        return place


def canonical_name(stored_name: str) -> str:
    """The published name of a tensor, whichever `transformers` named it."""
    for pattern, replacement in _RENAMES:
        stored_name = pattern.sub(replacement, stored_name)
    return stored_name


def read_config(path: Path) -> Section:
    """Read `config.json` in the directory `path`.

    Raises `CheckpointError` when it is missing or damaged, or of another model.
    """
    if not path.is_dir():
        raise CheckpointError(
            f"{path} is not a directory; expected a Qwen2.5-Omni checkpoint on this disk, for example from "
            "`hf download Qwen/Qwen2.5-Omni-3B --local-dir Qwen2.5-Omni-3B`"
        )
    config_path = path / "config.json"
    if not config_path.is_file():
        raise CheckpointError(f"{path} has no config.json; expected the directory of a Qwen2.5-Omni checkpoint")
    values = read_json(config_path)
    model_type = values.get("model_type")
    if model_type != _MODEL_TYPE:
        raise CheckpointError(
            f"{path} holds a model of type {model_type!r}; expected {_MODEL_TYPE!r}, "
            "as in Qwen/Qwen2.5-Omni-3B and Qwen/Qwen2.5-Omni-7B"
        )
    return Section(values, "config.json")


def _open_shards(path: Path) -> list[SafetensorsFile]:
    """Open the single file, or every shard of the index, and check that each shard holds what the index promises."""
    if not (path / _INDEX).is_file():
        if not (path / _WEIGHTS).is_file():
            raise CheckpointError(
                f"{path} has neither {_INDEX} nor {_WEIGHTS}; expected the weights as safetensors: "
                "download the checkpoint again"
            )
        return [SafetensorsFile(path / _WEIGHTS)]
    weight_map = read_json(path / _INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{path / _INDEX} has no weight_map of tensors to files; download the file again")
    files = {shard: SafetensorsFile(path / shard) for shard in sorted(set(weight_map.values()))}
    for name, shard in weight_map.items():
        if name not in files[shard].tensors:
            raise CheckpointError(
                f"{_INDEX} places tensor {name} in {shard}, which does not hold it; "
                f"download both again into {path}: they may be of two versions"
            )
    return list(files.values())


def _check_tying(path: Path, config: Section) -> None:
    """A head that is absent is the embedding table, unless the configuration says that the two differ.

    The other way round, a head that is there is used whatever the configuration says, as the reference does.
    """
    thinker = config.section("thinker_config")
    sections = [thinker, thinker.section("text_config")]
    said = [section.flag("tie_word_embeddings") for section in sections if section.has("tie_word_embeddings")]
    if said and not any(said):
        raise CheckpointError(
            f"{path} has no tensor {_HEAD}, though its config.json says tie_word_embeddings is false; "
            "download the checkpoint again"
        )
