"""What a conversation consists of, position by position: what any cache of it can be filled from.

A `Piece` is a stretch of positions: token ids `(n)`, TMRoPE ids `(3, n)`, and embeddings where an encoder made them. A
`History` is pieces in a row. It can be cut, and its oldest turns can leave: what comes after them moves up, so that it
is numbered as if they had never been.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from .prompt import Kind, Prompt
from .session import Array

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Piece:
    """Positions that belong to one turn; turn 0 is the system's."""

    token_ids: Int64
    """`(n)`; placeholders where an encoder's embeddings stand."""
    position_ids: Int64
    """`(3, n)`."""
    is_media: npt.NDArray[np.bool_]
    """`(n)`: where an encoder's embeddings stand."""
    embeddings: Array | None
    """`(is_media.sum(), D)`, in the order of the positions."""
    next_position: int
    """The id that what follows begins with."""
    turn: int

    @classmethod
    def of(cls, prompt: Prompt, encoded: Sequence[Mapping[Kind, Array]], turn: int) -> Piece:
        """A laid-out part of a prompt, with the embeddings of its media."""
        embeddings = None
        if prompt.slots:
            width = next(iter(encoded[0].values())).shape[1]
            rows = np.zeros((len(prompt.token_ids), width), next(iter(encoded[0].values())).dtype)
            for slot in prompt.slots:
                rows[slot.indices] = encoded[slot.part][slot.kind]
            embeddings = rows[prompt.is_media]
        return cls(prompt.token_ids, prompt.position_ids, prompt.is_media, embeddings, prompt.next_position, turn)

    @classmethod
    def of_text(cls, token_ids: Sequence[int], first_position: int, turn: int) -> Piece:
        """Tokens of text, from position id `first_position` on."""
        ids = np.asarray(token_ids, np.int64)
        positions = np.broadcast_to(first_position + np.arange(len(ids)), (3, len(ids)))
        return cls(ids, positions, np.zeros(len(ids), np.bool_), None, first_position + len(ids), turn)

    def __len__(self) -> int:
        return len(self.token_ids)

    def __getitem__(self, part: slice) -> Piece:
        """A stretch of it. Where it ends inside, text must: what follows text begins one id behind it."""
        start, end, _ = part.indices(len(self))
        embeddings = self.embeddings
        if embeddings is not None:
            first, last = (int(self.is_media[:place].sum()) for place in (start, end))
            embeddings = embeddings[first:last]
        following = self.next_position if end == len(self) else int(self.position_ids[0, end - 1]) + 1
        return Piece(
            self.token_ids[part], self.position_ids[:, part], self.is_media[part], embeddings, following, self.turn
        )

    def moved(self, distance: int) -> Piece:
        """The same piece, its position ids lower by `distance`."""
        return replace(self, position_ids=self.position_ids - distance, next_position=self.next_position - distance)


class History:
    """Pieces in a row, the system's first."""

    def __init__(self) -> None:
        self._pieces: list[Piece] = []

    def __len__(self) -> int:
        """Positions."""
        return sum(map(len, self._pieces))

    @property
    def next_position(self) -> int:
        """The TMRoPE id that the next piece begins with."""
        return self._pieces[-1].next_position if self._pieces else 0

    @property
    def largest_position(self) -> int:
        """The largest TMRoPE id there is; a video's may lie above that of the text after it."""
        return max((int(piece.position_ids.max()) for piece in self._pieces), default=-1)

    @property
    def token_ids(self) -> Int64:
        """`(S)`, with placeholders for media."""
        return np.concatenate([np.empty(0, np.int64), *(piece.token_ids for piece in self._pieces)])

    @property
    def turns(self) -> list[int]:
        """Turns there is something of, oldest first, without the system's."""
        return sorted({piece.turn for piece in self._pieces} - {0})

    def append(self, piece: Piece) -> None:
        """Add a piece."""
        if len(piece):
            self._pieces.append(piece)

    def since(self, position: int, most: int) -> Iterator[Piece]:
        """The pieces from a position on, none longer than `most`."""
        start = 0
        for piece in self._pieces:
            for first in range(max(0, position - start), len(piece), most):
                yield piece[first : first + most]
            start += len(piece)

    def until(self, length: int) -> History:
        """Another history of the same beginning."""
        beginning = History()
        beginning._pieces = list(self._pieces)
        beginning.cut(length)
        return beginning

    def cut(self, length: int) -> None:
        """Forget all positions from `length` on."""
        kept: list[Piece] = []
        for piece in self._pieces:
            if length > 0:
                kept.append(piece[:length] if length < len(piece) else piece)
            length -= len(piece)
        self._pieces = kept

    def forget(self, turn: int) -> int:
        """Let a turn leave, moving up what follows it; returns how many positions before it stayed as they were."""
        indices = [index for index, piece in enumerate(self._pieces) if piece.turn == turn]
        first, after = indices[0], indices[-1] + 1
        before = self._pieces[:first]
        starts = before[-1].next_position if before else 0
        distance = self._pieces[after - 1].next_position - starts
        self._pieces = before + [piece.moved(distance) for piece in self._pieces[after:]]
        return sum(map(len, before))
