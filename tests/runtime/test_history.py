"""Pieces of a conversation: cut anywhere, chunked anyhow, and numbered as if what left had never been."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from input_settings import VISION
from nearfield.runtime.history import History, Piece
from nearfield.runtime.manifest import Tokens
from nearfield.runtime.prompt import AudioSize, ImageSize, MediaSize, VideoSize, lay_out
from nearfield.runtime.vision_layout import Grid
from numpy.typing import NDArray

WIDTH = 3
TOKENS = Tokens(
    audio=90, audio_bos=91, audio_eos=92, image=93, video=94, vision_bos=95, vision_eos=96,
    position_ids_per_second=25, seconds_per_chunk=2,
)  # fmt: skip
MEDIA: dict[str, tuple[list[int], list[MediaSize]]] = {
    "text": ([5, 6, 7], []),
    "sound": ([5, TOKENS.audio, 6], [AudioSize(90)]),
    "picture": ([TOKENS.image, 6], [ImageSize(Grid(1, 4, 8))]),
    "film": ([5, TOKENS.video, 6, 7], [VideoSize(Grid(8, 4, 4), 2.0, None)]),
    "film with sound": ([5, TOKENS.video, 6], [VideoSize(Grid(4, 4, 4), 2.0, 200)]),
}
KINDS = st.lists(st.sampled_from(sorted(MEDIA)), min_size=1, max_size=6)


def piece(kind: str, first_position: int, turn: int) -> Piece:
    """A turn of a kind, its embeddings numbered so that each is known again."""
    ids, sizes = MEDIA[kind]
    prompt = lay_out(ids, sizes, TOKENS, VISION, first_position)
    encoded = [
        {slot.kind: 100 * turn + slot.indices[:, None] + np.zeros((1, WIDTH)) for slot in prompt.slots} for _ in sizes
    ]
    return Piece.of(prompt, encoded, turn)


def history_of(kinds: Sequence[str], turns: Sequence[int] | None = None) -> History:
    history = History()
    for turn, kind in zip(turns or range(len(kinds)), kinds, strict=True):
        history.append(piece(kind, history.next_position, turn))
    return history


def rows(history: History, start: int = 0, most: int = 1000) -> dict[str, NDArray[np.float64]]:
    """All positions: ids, TMRoPE ids, and embeddings, NaN where there are none."""
    pieces = list(history.since(start, most))
    assert all(len(each) <= most for each in pieces)
    embeddings = []
    for each in pieces:
        embeddings.append(np.full((len(each), WIDTH), np.nan))
        if each.embeddings is not None:
            embeddings[-1][each.is_media] = each.embeddings
    return {
        "ids": np.concatenate([each.token_ids for each in pieces]),
        "positions": np.concatenate([each.position_ids for each in pieces], axis=1).T,
        "embeddings": np.concatenate(embeddings),
    }


def same(found: dict[str, NDArray[np.float64]], expected: dict[str, NDArray[np.float64]]) -> None:
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


@given(KINDS, st.data())
def test_any_part_in_chunks_of_any_size_is_that_part(kinds: list[str], data: st.DataObject) -> None:
    history = history_of(kinds)
    start, most = data.draw(st.integers(0, len(history) - 1)), data.draw(st.integers(1, 20))
    same(rows(history, start, most), {name: values[start:] for name, values in rows(history).items()})


@given(KINDS, st.data())
def test_a_cut_keeps_the_beginning(kinds: list[str], data: st.DataObject) -> None:
    history = history_of(kinds)
    whole, length = rows(history), data.draw(st.integers(1, len(history)))
    history.cut(length)
    assert len(history) == length
    same(rows(history), {name: values[:length] for name, values in whole.items()})


@given(KINDS, KINDS, st.data())
def test_what_follows_a_turn_that_leaves_is_numbered_as_if_it_had_not_been(
    before: list[str], after: list[str], data: st.DataObject
) -> None:
    left = data.draw(st.sampled_from(sorted(MEDIA)))
    turns = list(range(len(before) + 1 + len(after)))
    history = history_of([*before, left, *after], turns)
    kept = history.forget(len(before))
    turns.remove(len(before))
    expected = history_of([*before, *after], turns)
    same(rows(history), rows(expected))
    assert kept == len(history_of(before))
    assert (history.next_position, history.largest_position) == (expected.next_position, expected.largest_position)
    assert history.turns == sorted({*turns} - {0})


def test_text_goes_on_one_id_behind_text_that_was_cut() -> None:
    history = history_of(["film", "text"])
    history.cut(len(history) - 1)
    history.append(Piece.of_text([9], history.next_position, turn=1))
    assert rows(history)["positions"].tolist() == rows(history_of(["film", "text"]))["positions"].tolist()


def test_nothing_is_a_history_too() -> None:
    history = History()
    history.append(Piece.of_text([], 0, turn=1))
    assert (len(history), history.next_position, history.largest_position, history.turns) == (0, 0, -1, [])
    assert history.token_ids.shape == (0,)
