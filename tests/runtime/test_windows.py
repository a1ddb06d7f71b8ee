"""Cutting codes into windows: which codes, noise and frames each has, however the codes come."""

from collections.abc import Sequence
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from bundles import make_manifest
from hypothesis import given
from hypothesis import strategies as st
from nearfield.errors import InputError
from nearfield.runtime.windows import WHOLE, Int64, Window, WindowPlan, Windows

SETTINGS = make_manifest({}).token2wav  # blocks of 24 frames, 12 codes
BLOCK = 12
GROWING = WindowPlan(first_blocks=1)

plans = st.builds(
    WindowPlan,
    first_blocks=st.integers(1, 3),
    next_blocks=st.integers(1, 3),
    longest_blocks=st.integers(1, 5),
    back_blocks=st.integers(0, 3),
    ahead_blocks=st.integers(0, 2),
)
parts = st.lists(st.integers(0, 40), max_size=12)


def numbered(codes: int) -> Int64:
    """Codes that say where they are."""
    return np.arange(codes)


def cut(plan: WindowPlan, sizes: Sequence[int], *, seed: int = 0, at_once: bool = False) -> list[Window]:
    """The windows of numbered codes that come in parts of these sizes; cut as they come, or only at the end."""
    windows, found = Windows(plan, SETTINGS, seed), list[Window]()
    for part in np.split(numbered(sum(sizes)), np.cumsum(sizes)[:-1]) if sizes else []:
        windows.push(part)
        while not at_once and (window := windows.next()) is not None:
            found.append(window)
    windows.finish()
    while (window := windows.next()) is not None:
        found.append(window)
    assert windows.done
    return found


def codes_of(window: Window) -> Int64:
    """The codes of the window itself."""
    return window.codes[window.frames.start // 2 : window.frames.stop // 2]


@given(plans, parts)
def test_windows_follow_each_other_and_hold_every_code_once(plan: WindowPlan, sizes: list[int]) -> None:
    found = cut(plan, sizes)
    np.testing.assert_array_equal(np.concatenate([[], *map(codes_of, found)]), numbered(sum(sizes)))


@given(plans, parts)
def test_a_frame_has_the_whole_replys_noise_in_every_window_it_is_in(plan: WindowPlan, sizes: list[int]) -> None:
    whole = np.random.default_rng(5).standard_normal((1, 2 * sum(sizes), 80), np.float32)
    for window in cut(plan, sizes, seed=5):
        first = 2 * window.codes[0]
        np.testing.assert_array_equal(window.noise, whole[:, first : first + 2 * len(window.codes)])


@given(plans, parts, st.booleans())
def test_how_codes_come_does_not_matter(plan: WindowPlan, sizes: list[int], at_once: bool) -> None:
    split, together = cut(plan, sizes, at_once=at_once), cut(plan, [sum(sizes)])
    assert [window.frames for window in split] == [window.frames for window in together]
    assert [window.codes.tolist() for window in split] == [window.codes.tolist() for window in together]


@given(plans, parts)
def test_windows_begin_where_blocks_of_the_whole_reply_do(plan: WindowPlan, sizes: list[int]) -> None:
    found = cut(plan, sizes)
    assert all(window.codes[0] % BLOCK == 0 and codes_of(window)[0] % BLOCK == 0 for window in found)
    assert all(len(window.codes) <= plan.most_blocks * BLOCK for window in found)


def test_the_second_is_as_long_as_the_first_and_each_after_it_twice_as_long() -> None:
    lengths = [len(codes_of(window)) // BLOCK for window in cut(GROWING, [40 * BLOCK])]
    assert lengths == [1, 1, 2, 4, 8, 8, 8, 8]  # the last has one block for the end and seven others


def test_there_are_two_blocks_before_a_window_and_one_after_it_but_at_the_ends() -> None:
    found = cut(GROWING, [9 * BLOCK + 5])
    around = [(int(codes_of(w)[0] - w.codes[0]), int(w.codes[-1] - codes_of(w)[-1])) for w in found]
    assert around == [(0, 12), (12, 12), (24, 12), (24, 12), (24, 0)]


def test_a_window_is_cut_as_soon_as_its_codes_are_there() -> None:
    windows = Windows(GROWING, SETTINGS, seed=0)
    windows.push(numbered(2 * BLOCK - 1))
    assert windows.next() is None
    windows.push(numbered(1))
    window = windows.next()
    assert window is not None
    assert window.frames == slice(0, 24)
    assert windows.next() is None


def test_the_whole_reply_is_one_window_and_not_before_its_end() -> None:
    windows = Windows(WHOLE, SETTINGS, seed=0)
    windows.push(numbered(5000))
    assert windows.next() is None
    windows.finish()
    window = windows.next()
    assert window is not None
    assert (len(window.codes), window.frames) == (5000, slice(0, 10_000))
    assert windows.next() is None


@pytest.mark.parametrize(("context", "blocks"), [(18, 1), (23, 1), (24, 2), (34, 2)])
def test_the_first_window_is_the_smallest_from_which_the_vocoder_makes_sound(context: int, blocks: int) -> None:
    plan = WindowPlan.streaming(msgspec.structs.replace(SETTINGS, vocoder_context_frames=context))
    assert plan == replace(GROWING, first_blocks=blocks)


@pytest.mark.parametrize("name", ["first_blocks", "next_blocks", "longest_blocks"])
def test_a_window_without_a_block_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} of a window plan is 0; expected at least 1"):
        WindowPlan(**{"first_blocks": 1, name: 0})
    with pytest.raises(InputError, match="back_blocks of a window plan is -1; expected at least 0"):
        WindowPlan(1, back_blocks=-1)


@given(plans, st.integers(0, 60))
def test_it_says_how_many_codes_the_next_window_lacks(plan: WindowPlan, codes: int) -> None:
    windows = Windows(plan, SETTINGS, 0)
    windows.push(numbered(codes))
    while windows.next() is not None:
        pass
    lacking, further = windows.missing(1), windows.missing(2)
    assert 0 < lacking < further
    windows.push(numbered(lacking - 1))
    assert windows.next() is None
    windows.push(numbered(1))
    assert windows.missing(1) == 0
    assert windows.missing(2) == further - lacking
    assert windows.next() is not None
    assert windows.next() is None
    assert windows.missing(1) == further - lacking
