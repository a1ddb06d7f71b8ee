"""The plan's figures, computed by hand for the published shapes, and what must hold for every plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import bundles
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nearfield.apps.cli.common import DEMO_BUNDLE
from nearfield.errors import ContextLimitError, InputError
from nearfield.runtime.bundle import Bundle
from nearfield.runtime.graph_file import GraphFacts
from nearfield.runtime.manifest import Component, ComponentName, KVCache, Manifest
from nearfield.runtime.memory_plan import (
    MemoryLine,
    MemoryPlan,
    MemoryPlanner,
    Workload,
    cache_bytes,
    video_positions,
)

THINKER_3B = KVCache(layers=36, kv_heads=2, head_dim=128)
THINKER_7B = KVCache(layers=28, kv_heads=4, head_dim=128)
TALKER_7B = KVCache(layers=24, kv_heads=4, head_dim=128)


def facts(width: int, heads: int = 0, *, channels: int = 0, float16: int = 0, packed: int = 0) -> GraphFacts:
    """A graph with `float16` and `packed` bytes of weights, the largest of 1000 elements."""
    return GraphFacts(
        float32_bytes=0, float16_bytes=float16, packed_bytes=packed, largest_float_elements=1000,
        widths=frozenset({width}), heads=heads, last_channels=channels,
    )  # fmt: skip


GRAPHS_7B: dict[ComponentName, GraphFacts] = {
    "audio_encoder": facts(5120, 20, float16=1_280_000_000),
    "vision_encoder": facts(5120, 16, float16=1_350_000_000),
    "thinker": facts(18944, 28, float16=1_090_000_000, packed=3_390_000_000),
    "talker": facts(18944, 12, float16=16_000_000, packed=683_000_000),
    "dit": facts(2048, 16, float16=380_000_000),
    "vocoder": facts(1, channels=24, float16=231_000_000),
}


def manifest_7b(**components: Any) -> Manifest:
    """A manifest of 7B's shape; `components` change every component."""
    manifest = bundles.make_manifest({}, "omni-7b")
    change = msgspec.structs.replace
    return change(
        manifest,
        components={name: change(component, **components) for name, component in manifest.components.items()},
        thinker=change(
            manifest.thinker, hidden_size=3584, vocab_size=152_064, max_positions=32_768, kv_cache=THINKER_7B
        ),
        talker=change(manifest.talker, embedding_size=3584, vocab_size=8448, max_positions=32_768, kv_cache=TALKER_7B),
        vision=change(manifest.vision, image_max_pixels=12_845_056, video_max_pixels=12_845_056),
        audio=change(manifest.audio, max_frames=30_000),
    )


def planner(**components: Any) -> MemoryPlanner:
    return MemoryPlanner(manifest_7b(**components), GRAPHS_7B, mapped_bytes=1_150_000_000)


def line(plan: MemoryPlan, name: str, place: str | None = None) -> MemoryLine:
    [found] = [line for line in plan.lines if line.name == name and place in (None, line.place)]
    return found


# Keys and values


def test_caches_are_keys_and_values_of_all_layers() -> None:
    assert cache_bytes(THINKER_7B, 32_768, 2) == 28 * 2 * 4 * 32_768 * 128 * 2 == 1_879_048_192
    assert cache_bytes(THINKER_3B, 32_768, 2) == 36 * 2 * 2 * 32_768 * 128 * 2 == 1_207_959_552
    assert cache_bytes(THINKER_3B, 1000, 4) == 73_728_000


def test_a_shared_cache_is_planned_once_and_the_talkers_holds_the_codes_too() -> None:
    plan = planner().plan(Workload(context=8192))
    assert line(plan, "thinker").cache_bytes == 28 * 2 * 4 * 8192 * 128 * 2
    assert line(plan, "talker").cache_bytes == 24 * 2 * 4 * (8192 + 4096) * 128 * 2
    full = planner().plan(Workload(context=32_768))
    assert line(full, "talker").cache_bytes == 24 * 2 * 4 * 32_768 * 128 * 2, "it has no more positions"


def test_a_growing_cache_is_there_twice_while_it_grows() -> None:
    workload = Workload(context=8192)
    shared, growing = planner().plan(workload), planner(dialect="standard").plan(workload)
    assert line(growing, "thinker").cache_bytes == 2 * line(shared, "thinker").cache_bytes


def test_float32_takes_twice_the_cache() -> None:
    workload = Workload(context=8192)
    half, whole = planner().plan(workload), planner(dtype="float32").plan(workload)
    assert line(whole, "thinker").cache_bytes == 2 * line(half, "thinker").cache_bytes


# Work


def test_work_on_a_chunk_of_the_prompt_is_six_rows_of_the_feed_forward() -> None:
    plan = planner().plan(Workload(device="cuda", context=8192))
    assert line(plan, "thinker").work_bytes == 6 * 512 * 18_944 * 2


def test_float16_on_a_cpu_holds_all_scores_and_one_layers_cache_as_floats() -> None:
    work = line(planner().plan(Workload(context=8192)), "thinker").work_bytes
    scores = 28 * 512 * 8192 * 4
    assert work == 6 * 512 * 18_944 * 4 + 2 * scores + 2 * 4 * 128 * 8192 * 4
    floats = line(planner(dtype="float32").plan(Workload(context=8192)), "thinker").work_bytes
    assert floats == 6 * 512 * 18_944 * 4, "float32 has a kernel that holds no scores"


def test_the_head_is_no_width_of_a_chunk() -> None:
    with_head = GRAPHS_7B | {"thinker": replace(GRAPHS_7B["thinker"], widths=frozenset({18_944, 152_064}))}
    manifest, workload = manifest_7b(), Workload(context=4096)
    assert (
        MemoryPlanner(manifest, with_head).plan(workload).lines
        == MemoryPlanner(manifest, GRAPHS_7B).plan(workload).lines
    )


def test_a_run_of_the_vision_encoder_is_an_image_or_the_pairs_of_frames_that_fit_into_one() -> None:
    def patches(**workload: Any) -> float:
        work = line(planner().plan(Workload(context=32_768, **workload)), "vision_encoder").work_bytes
        return work / (3 * 4 * 1176 + 6 * 5120 * 4)

    assert patches(image_pixels=0) == 0
    assert patches(image_pixels=1280 * 28 * 28) == 1280 * 4
    assert patches(image_pixels=0, video_seconds=1.0) == 3072, "frames of 768 positions: one pair a run"
    assert patches(image_pixels=0, video_seconds=1.0, frame_pixels=100_352) == 8 * 512


def test_silence_takes_no_work_of_the_voice() -> None:
    plan = planner().plan(Workload(context=4096, codes=0))
    assert line(plan, "dit").work_bytes == line(plan, "vocoder").work_bytes == 0
    assert line(plan, "dit").weights_bytes > 0


# Weights and places


def test_on_a_gpu_weights_are_those_of_the_files_and_tables_stay_in_main_memory() -> None:
    plan = planner().plan(Workload(device="cuda", context=8192))
    thinker = line(plan, "thinker")
    assert (thinker.place, thinker.weights_bytes) == ("device", 1_090_000_000 + 3_390_000_000)
    assert (line(plan, "tables").place, line(plan, "tables").weights_bytes) == ("host", 1_150_000_000)
    assert "never measured" in line(plan, "GPU libraries", "device").note
    on_gpu = sum(line.total_bytes for line in plan.lines if line.place == "device")
    assert plan.needed_bytes("device") == on_gpu


def test_on_a_cpu_everything_is_in_main_memory_and_half_floats_become_floats() -> None:
    plan = planner().plan(Workload(context=8192))
    assert {line.place for line in plan.lines} == {"host"}
    assert plan.needed_bytes("device") == 0
    assert line(plan, "audio_encoder").weights_bytes >= 2 * 1_280_000_000
    assert line(plan, "thinker").loading_bytes == 4000


def test_loading_counts_where_it_takes_more_than_running() -> None:
    lines = (
        MemoryLine("a", "host", weights_bytes=100, work_bytes=10, loading_bytes=50),
        MemoryLine("b", "host", weights_bytes=10, cache_bytes=20),
    )
    plan = MemoryPlan(Workload(), lines, 0)
    assert plan.needed_bytes("host") == 160
    assert plan.largest("host").name == "a"
    assert replace(plan, lines=(replace(lines[0], loading_bytes=0), lines[1])).needed_bytes("host") == 140


# Video


def test_a_video_takes_its_frames_its_sound_and_four_marks() -> None:
    assert video_positions(manifest_7b(), Workload()) == 0
    # 30 s: 60 frames are 30 pairs of 768 positions; 25 positions of sound a second.
    assert video_positions(manifest_7b(), Workload(video_seconds=30.0)) == 30 * 768 + 750 + 4
    # The checkpoint cuts sound after 300 s, and an odd frame counts as a pair.
    small = Workload(video_seconds=400.5, video_fps=1.0, frame_pixels=28 * 28)
    assert video_positions(manifest_7b(), small) == 201 + 7500 + 4


def test_a_context_too_small_for_the_video_is_told_the_one_that_would_do() -> None:
    with pytest.raises(ContextLimitError, match=r"takes 23794 positions .*8192: use a context of 24434") as error:
        planner().plan(Workload(context=8192, video_seconds=30.0))
    assert "60 frames of 602112 pixels" in str(error.value)
    planner().plan(Workload(context=24_434, video_seconds=30.0))
    with pytest.raises(ContextLimitError):
        planner().plan(Workload(context=24_433, video_seconds=30.0))


def test_a_video_too_long_for_the_model_is_told_the_length_that_would_do() -> None:
    with pytest.raises(ContextLimitError, match="omni-7b has 32768: use a video of 40 s") as error:
        planner().plan(Workload(context=32_768, video_seconds=60.0))
    assert "a context of" not in str(error.value)
    planner().plan(Workload(context=32_768, video_seconds=40.0))


@pytest.mark.parametrize("context", [0, 32_769])
def test_a_context_the_model_does_not_have_is_refused(context: int) -> None:
    with pytest.raises(InputError, match=rf"context is {context}; omni-7b has positions for 1 … 32768"):
        planner().plan(Workload(context=context))


# Every plan

CONTEXTS = st.integers(28_000, 32_768)
SECONDS = st.floats(0, 30)


@given(
    contexts=st.tuples(CONTEXTS, CONTEXTS), seconds=st.tuples(SECONDS, SECONDS),
    device=st.sampled_from(("cpu", "cuda")), dialect=st.sampled_from(("ort", "standard")),
    dtype=st.sampled_from(("float16", "float32")),
)  # fmt: skip
def test_more_context_or_video_never_takes_less(
    contexts: tuple[int, int], seconds: tuple[float, float], device: Any, dialect: str, dtype: str
) -> None:
    made = planner(dialect=dialect, dtype=dtype)
    less = made.plan(Workload(device, min(contexts), min(seconds)))
    more = made.plan(Workload(device, max(contexts), max(seconds)))
    assert less.video_positions <= more.video_positions
    for small, large in zip(less.lines, more.lines, strict=True):
        assert small.name == large.name
        assert 0 <= small.total_bytes <= large.total_bytes
    assert less.needed_bytes("host") <= more.needed_bytes("host")


@given(free=st.integers(0, 40 << 30))
def test_the_largest_context_fits_and_the_next_does_not(free: int) -> None:
    made, workload = planner(), Workload(context=32_768)
    context = made.largest_context(workload, {"host": free})
    if context is None:
        assert not made.plan(replace(workload, context=1)).fits({"host": free})
    else:
        assert made.plan(replace(workload, context=context)).fits({"host": free})
        if context < 32_768:
            assert not made.plan(replace(workload, context=context + 1)).fits({"host": free})


def test_what_is_not_known_to_be_free_is_taken_to_suffice() -> None:
    plan = planner().plan(Workload(device="cuda", context=8192))
    assert plan.fits({"device": None, "host": None})
    assert not plan.fits({"device": 1, "host": None})


def test_a_real_bundle_is_planned_without_loading_it() -> None:
    bundle = Bundle.open(DEMO_BUNDLE)
    plan = MemoryPlanner.of(bundle).plan(Workload(context=8192))
    components: list[Component] = list(bundle.manifest.components.values())
    weights = sum(bundle.manifest.files[component.data].size_bytes for component in components)
    names = set(bundle.manifest.components)
    assert weights < sum(line.weights_bytes for line in plan.lines if line.name in names) < 3 * weights
    assert line(plan, "thinker").cache_bytes == 4 * 2 * 2 * 64 * 8192 * 2
    assert line(plan, "tables").weights_bytes == 475_264 + 540_800 + 458_880
