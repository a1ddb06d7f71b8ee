"""The Talker at work: rows of the Thinker in, speech codes out, 50 codes a second of speech.

Inputs: prompt rows `float32 (P, E)` and reply rows `float32 (E)`, one a Thinker token (see `thinker.py`) → output:
codes below `code_count`, one a step. Incremental by design: the prompt is read as it comes, and what was read of it is
kept from one reply to the next; a step needs the reply row of its place or the knowledge that the reply has ended, so
speech can be made while the reply is still being written.

Each step feeds the embedding of the code before it + the next reply row. When the reply's rows are used up, the row is
that of the token `text_eos` once and `text_pad` from then on (technical report, arXiv 2503.20215, section 2.3).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Literal

import numpy as np

from . import manifest
from .decoder import Decoder, Float32, Int64
from .sampling import Sampler, Sampling
from .thinker import Table, gather_rows

SpeechStop = Literal["end", "max_codes", "text", "context"]
"""Why speech ended: the Talker said so, the limit was reached, its text is over for far too long, or the Talker's
context is full.
"""

_CODES_PER_ROW, _CODES_BESIDE = 40, 100


class Talker:
    """`read` a prompt, `begin` a reply, then `push` rows and `finish_text`, and `step` whenever `ready`."""

    def __init__(
        self,
        decoder: Decoder,
        settings: manifest.Talker,
        code_embedding: Table,
        text_embedding: Table,
        *,
        code_count: int,
    ) -> None:
        """`code_embedding (Vt, E)` is the Talker's own table, `text_embedding (V, E)` the Thinker's; the DiT has codes
        0 … `code_count` − 1."""
        self._decoder, self._settings = decoder, settings
        self._code_embedding, self._text_embedding = code_embedding, text_embedding
        self._text_eos: Float32 = gather_rows(text_embedding, [settings.text_eos_token_id])[0]
        self._text_pad: Float32 = gather_rows(text_embedding, [settings.text_pad_token_id])[0]
        self._stops = (settings.codec_eos_token_id, settings.codec_pad_token_id)
        # The vocabulary goes past the codes the DiT has rows for. The reference suppresses only `codec_bos`, and would
        # fail on any other; masking them all changes nothing where it stays inside.
        self._suppressed = sorted(set(range(code_count, settings.vocab_size)) - set(self._stops))
        self._rows: deque[Float32] = deque()
        self._sampler: Sampler | None = None
        self._stop_reason: SpeechStop | None = None
        self._previous_code = settings.codec_bos_token_id
        self._count = self._max_codes = self._rows_pushed = self._text_codes = 0
        self.reset()

    def reset(self) -> None:
        """Forget the prompt and the reply."""
        self._prompt_length = 0
        self._end_reply()

    def read(self, prompt_rows: Float32, position_ids: Int64) -> None:
        """Add rows `(P, E)` with TMRoPE ids `(3, P)` to the prompt; a reply there may be is forgotten.

        Raises `ContextLimitError` when they do not fit.
        """
        self._end_reply()
        self._decoder.prefill(prompt_rows, position_ids)
        self._prompt_length = self._decoder.length

    def truncate(self, length: int) -> None:
        """Forget the reply, and the prompt from position `length` on."""
        if not 0 <= length <= self._prompt_length:
            raise ValueError(f"the prompt has {self._prompt_length} positions and cannot be cut to {length}")
        self._prompt_length = length
        self._end_reply()

    @property
    def prompt_length(self) -> int:
        """Positions of the prompt that were read."""
        return self._prompt_length

    def begin(
        self,
        *,
        next_position: int,
        largest_position: int,
        voice_bos_token_id: int,
        sampling: Sampling,
        generator: np.random.Generator,
        max_codes: int,
    ) -> None:
        """Start a reply to the prompt that was read with the token that calls the voice.

        `next_position` is the TMRoPE id behind the prompt's last token, which is text; `largest_position` the largest
        of the prompt, which a picture or video may have pushed ahead. Raises `ContextLimitError` when the prompt leaves
        no room for a first code.
        """
        self._end_reply()
        self.check_fits(0)
        settings = self._settings
        voice_row = gather_rows(self._text_embedding, [voice_bos_token_id]) + self._embed(settings.codec_pad_token_id)
        # The voice's token and the first reply token continue the prompt's text. From there on the reference counts
        # from the largest id so far.
        self._decoder.step(voice_row[0], next_position)
        self._position = next_position + 1
        self._next_position = max(largest_position, next_position + 1) + 1
        # The reference's repetition penalty counts the codec ids that stand for the prompt as seen. Pad, one of them,
        # ends speech, so this matters: it makes an end there a little less likely.
        seen = [settings.codec_mask_token_id, settings.codec_pad_token_id, settings.codec_bos_token_id]
        self._sampler = Sampler(sampling, settings.vocab_size, generator, seen=seen, suppressed=self._suppressed)
        self._max_codes = max_codes

    def check_fits(self, prompt_positions: int) -> None:
        """Raise `ContextLimitError` when so many more leave no room for the voice's token and a first code."""
        self._decoder.check_fits(prompt_positions + 2)

    def push(self, row: Float32) -> None:
        """Add the row `(E,)` of the next reply token."""
        if self._text_finished:
            raise ValueError("a row was pushed after finish_text(); begin() starts another reply")
        self._rows.append(row)
        self._rows_pushed += 1

    def finish_text(self) -> None:
        """Say that no more rows come.

        A Talker that misses its end babbles for as long as it may. So speech ends at the latest when it has taken 0.8 s
        for each of its tokens and two seconds more, several times what they take; CosyVoice 2 has the same bound.
        """
        self._text_finished = True
        self._text_codes = _CODES_PER_ROW * self._rows_pushed + _CODES_BESIDE
        if self._count == 0 and not self._rows:
            self._stop_reason = "end"  # nothing was said

    @property
    def stop_reason(self) -> SpeechStop | None:
        """Why speech ended; None while it has not."""
        return self._stop_reason

    @property
    def ready(self) -> bool:
        """Whether a step can be made: speech has not ended, and the row it needs is there or no row will come."""
        return self._stop_reason is None and self._sampler is not None and bool(self._rows or self._text_finished)

    def step(self) -> int | None:
        """Make the next code, or None when speech ends here. Only while `ready`."""
        if not self.ready or self._sampler is None:
            raise ValueError("the Talker is not ready: begin() a reply, then push() a row or finish_text()")
        output = self._decoder.step(self._next_row() + self._embed(self._previous_code)[0], self._position)
        self._position, self._next_position = self._next_position, self._next_position + 1
        code = self._sampler.choose(output.logits)
        if code in self._stops:
            self._stop_reason = "end"
            return None
        self._previous_code = code
        self._count += 1
        if self._count == self._max_codes:
            self._stop_reason = "max_codes"
        elif self._text_finished and self._count >= self._text_codes:
            self._stop_reason = "text"
        elif self._decoder.length == self._decoder.context:
            self._stop_reason = "context"
        return code

    def codes(self) -> Iterator[int]:
        """Make codes for as long as the Talker is ready."""
        while self.ready:
            code = self.step()
            if code is not None:
                yield code

    def _end_reply(self) -> None:
        self._decoder.truncate(self._prompt_length)
        self._rows.clear()
        self._sampler = self._stop_reason = None
        self._text_finished = self._text_eos_fed = False
        self._previous_code = self._settings.codec_bos_token_id
        self._count = self._max_codes = self._rows_pushed = self._text_codes = 0

    def _next_row(self) -> Float32:
        if self._rows:
            return self._rows.popleft()
        if not self._text_eos_fed:
            self._text_eos_fed = True
            return self._text_eos
        return self._text_pad

    def _embed(self, code: int) -> Float32:
        return gather_rows(self._code_embedding, [code])
