"""The vision encoder's graph beside the reference: grids that divide into windows and grids that do not, and frames."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graphs import Array, Graph, open_component
from nearfield.errors import CheckpointError
from nearfield.export.bind import Reader, write_component
from nearfield.export.checkpoint import Checkpoint
from nearfield.export.config import Section
from nearfield.export.graph import Style
from nearfield.export.vision_encoder import VisionEncoderConfig, vision_encoder_graph
from nearfield.runtime.manifest import Dialect, FloatType
from tolerances import FP16_RELATIVE, FP32_RELATIVE, relative_error
from torch import nn
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

DIALECTS: list[Dialect] = ["ort", "standard"]
GRIDS = [
    (1, 8, 8),  # one window
    (1, 2, 2),  # one embedding
    (1, 16, 16),  # full windows
    (3, 16, 8),  # full windows, several temporal patches
    (2, 10, 14),  # windows cut on both sides
    (1, 2, 30),  # wide
    (2, 26, 4),  # tall
]


@dataclass(frozen=True)
class Layout:
    """Where the reference puts the patches of an `(h, w)` grid: the graph's inputs, and window order as `order (P)`."""

    order: Array
    inputs: dict[str, Array]

    @classmethod
    def of(cls, rows: int, columns: int, merge: int, window_pixels: int, patch_pixels: int) -> "Layout":
        grid = torch.tensor([[1, rows, columns]])
        groups, bounds = get_vision_window_index(grid, merge, window_pixels, patch_pixels)
        order = (groups[:, None] * merge**2 + torch.arange(merge**2)).flatten().numpy()
        positions = get_vision_position_ids(grid, merge).numpy()[order]
        size = (window_pixels // patch_pixels) ** 2
        window_slots = np.full((len(bounds) - 1, size), -1, np.int64)
        for window, (start, end) in enumerate(pairwise(bounds.tolist())):
            window_slots[window, : end - start] = np.arange(start, end)
        patch_slots = np.flatnonzero(window_slots >= 0)
        return cls(order, {"positions": positions, "window_slots": window_slots, "patch_slots": patch_slots})


@dataclass
class Case:
    """The encoder of one checkpoint."""

    checkpoint: Path
    config: VisionEncoderConfig
    reference: nn.Module

    def open(self, style: Style, directory: Path) -> Graph:
        return open_component(vision_encoder_graph(self.config, style), self.checkpoint, directory)

    @torch.no_grad()
    def expected(self, patches: Array, grid: tuple[int, int, int]) -> Array:
        """The reference's embeddings `(T · P/4, D)` of patches in the processor's order."""
        embeddings: Array = self.reference(torch.from_numpy(patches), torch.tensor([grid])).pooler_output.numpy()
        return embeddings


def run(graph: Graph, config: VisionEncoderConfig, patches: Array, grid: tuple[int, int, int]) -> Array:
    """The graph's embeddings `(T · P/4, D)`, put back into the processor's order."""
    frames, rows, columns = grid
    layout = Layout.of(rows, columns, config.merge_patches, config.window_pixels, config.patch_pixels)
    dtype = {"tensor(float)": np.float32, "tensor(float16)": np.float16}[graph.session.get_inputs()[0].type]
    pixels = patches.reshape(frames, rows * columns, -1)[:, layout.order].astype(dtype)
    out = graph.run({"pixels": pixels, **layout.inputs})["embeddings"]
    assert out.shape == (frames, rows * columns // config.merge_patches**2, config.output_width)
    assert out.dtype == dtype
    inverse = np.argsort(layout.order[:: config.merge_patches**2])
    return out[:, inverse].reshape(-1, config.output_width)


def random_patches(config: VisionEncoderConfig, grid: tuple[int, int, int]) -> Array:
    """Patches `(T · P, 1176)` with the spread of a normalized picture."""
    return np.random.default_rng(grid).standard_normal((int(np.prod(grid)), config.patch_values)).astype(np.float32)


@pytest.fixture(scope="module", params=["3b", "7b"])
def case(request: pytest.FixtureRequest) -> Case:
    checkpoint: Path = request.getfixturevalue(f"checkpoint_{request.param}")
    reference = request.getfixturevalue(f"reference_{request.param}").thinker.model.visual
    section = Checkpoint.open(checkpoint).config.section("thinker_config").section("vision_config")
    return Case(checkpoint, VisionEncoderConfig.from_hf(section), reference)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(("float_type", "limit"), [("float32", FP32_RELATIVE), ("float16", FP16_RELATIVE)])
def test_grids_of_every_kind_equal_the_reference(
    case: Case, dialect: Dialect, float_type: FloatType, limit: float, tmp_path: Path
) -> None:
    graph = case.open(Style(dialect, float_type), tmp_path)
    for grid in GRIDS:
        patches = random_patches(case.config, grid)
        out, expected = run(graph, case.config, patches, grid), case.expected(patches, grid)
        assert relative_error(out, expected) <= limit, f"grid {grid}"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_temporal_patch_is_the_same_alone(case: Case, dialect: Dialect, tmp_path: Path) -> None:
    graph = case.open(Style(dialect, "float32"), tmp_path)
    patches = random_patches(case.config, (3, 6, 10))
    together = run(graph, case.config, patches, (3, 6, 10))
    alone = [run(graph, case.config, frame, (1, 6, 10)) for frame in np.split(patches, 3)]
    assert relative_error(np.concatenate(alone), together) <= FP32_RELATIVE


@pytest.mark.parametrize("dialect", DIALECTS)
def test_rows_and_columns_far_from_the_origin_keep_their_angle_in_half_precision(
    case: Case, dialect: Dialect, tmp_path: Path
) -> None:
    grid = (1, 2, 1022)
    patches = random_patches(case.config, grid)
    out = run(case.open(Style(dialect, "float16"), tmp_path), case.config, patches, grid)
    expected = case.expected(patches, grid)
    assert relative_error(out[-16:], expected[-16:]) <= FP16_RELATIVE


def test_every_tensor_under_the_prefix_is_taken(case: Case, tmp_path: Path) -> None:
    component = vision_encoder_graph(case.config, Style("ort", "float32"))
    checkpoint = Checkpoint.open(case.checkpoint)
    reader = Reader(checkpoint)
    write_component(component, reader, tmp_path)
    assert reader.taken == {name for name in checkpoint.names if name.startswith("thinker.visual.")}


def published(**changes: object) -> Section:
    """The published 7B section, of an older `transformers`, with changes."""
    values: dict[str, Any] = {
        "depth": 32,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "hidden_act": "silu",
        "hidden_size": 1280,
        "in_chans": 3,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
    }
    return Section(values | changes, "config.json.vision_config")


def test_both_spellings_of_the_settings_are_read() -> None:
    config = VisionEncoderConfig.from_hf(published())
    assert (config.rope_theta, config.patch_values, config.window_patches, config.head_dim) == (10_000.0, 1176, 64, 80)
    renewed = published(in_channels=3, rope_parameters={"rope_type": "axial", "rope_theta": 10_000.0})
    assert VisionEncoderConfig.from_hf(renewed) == config
    assert VisionEncoderConfig.from_hf(published(rope_parameters={"rope_theta": 500.0})).rope_theta == 500.0


def test_settings_it_does_not_have_are_refused() -> None:
    with pytest.raises(CheckpointError, match="hidden_act is 'gelu'; Nearfield's is 'silu'"):
        VisionEncoderConfig.from_hf(published(hidden_act="gelu"))
    with pytest.raises(CheckpointError, match="window_size is 100; expected a multiple of"):
        VisionEncoderConfig.from_hf(published(window_size=100))
    with pytest.raises(CheckpointError, match="hidden_size is 1280; expected num_heads, 12, times a multiple of 4"):
        VisionEncoderConfig.from_hf(published(num_heads=12))
