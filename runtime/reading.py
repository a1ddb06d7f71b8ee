"""Keeping the Thinker and the Talker abreast of a conversation: both hold a beginning of its `History`.

Input: a history that grows, is cut, or loses its oldest turns → effect: `catch_up` feeds what the caches lack. The
Thinker's last hidden state + embedding of a position is the Talker's row for it, so the two read together; but for a
reply, whose rows come from the Thinker while it writes, and which the Talker reads only when it has spoken it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .decoder import CHUNK_POSITIONS, Float32
from .history import History
from .pipeline import carry_on
from .talker import Talker
from .thinker import Thinker, talker_prompt_rows


class Reader:
    """What was read of a history."""

    def __init__(self, thinker: Thinker, talker: Talker | None) -> None:
        """Starts with nothing read; `talker` is None for a conversation that is not spoken."""
        self._thinker, self._talker = thinker, talker
        self._reply_rows: Sequence[Float32] = ()  # of the Thinker's last positions, which the Talker has yet to read
        self._reply_position = 0
        self.cut(0)

    @property
    def length(self) -> int:
        """How many positions of the history the Thinker holds."""
        return self._thinker.decoder.length

    def catch_up(self, history: History, check: Callable[[], None] = carry_on) -> None:
        """Read what is new in the history, a chunk at a time; what `check` raises between them stops it there."""
        if self._talker is not None and self._reply_rows:
            positions = self._reply_position + np.arange(len(self._reply_rows))
            self._talker.read(np.stack(self._reply_rows), np.broadcast_to(positions, (3, len(positions))))
            self._reply_rows = ()
        for piece in history.since(self.length, CHUNK_POSITIONS):
            check()
            embeddings = self._thinker.embed(piece.token_ids)  # (n, D)
            if piece.embeddings is not None:
                embeddings[piece.is_media] = piece.embeddings
            hidden = self._thinker.prefill(embeddings, piece.position_ids)
            if self._talker is not None:
                self._talker.read(talker_prompt_rows(hidden, embeddings, piece.is_media), piece.position_ids)

    def wrote(self, rows: Sequence[Float32], first_position: int) -> None:
        """Take over the rows `(D,)` of a reply's tokens, which the Thinker holds since it wrote them."""
        self._reply_rows, self._reply_position = rows, first_position

    def cut(self, length: int) -> None:
        """Forget what was read from position `length` on."""
        self._thinker.truncate(min(length, self.length))
        if self._talker is not None:
            self._talker.truncate(min(length, self._talker.prompt_length))
            self._reply_rows = self._reply_rows[: max(0, length - self._talker.prompt_length)]
