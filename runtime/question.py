"""A user's turn while it is being made: what is in it, and how much of it has gone into the history.

Inputs: sound as it comes, pictures, videos, clips and text → outputs: `Piece`s for the history. Whatever can no longer
change goes there at once: all up to the last picture, and sound in whole blocks of two seconds. The rest goes when the
turn is over, without changing the turn here, so that it can be taken back and gone on with.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..errors import BundleError
from . import manifest
from .encoders import AudioEncoder, VisionEncoder, encode_part
from .history import Piece
from .mel import audio_tokens
from .mel_stream import MelStream
from .messages import Part, Text
from .prompt import Kind, MediaSize, lay_out, media_size, placeholders, template_entry
from .session import Array
from .tokenizer import Entry
from .turns import Turns


@dataclass(frozen=True)
class Senses:
    """What a turn is taken in with."""

    turns: Turns
    audio_encoder: AudioEncoder
    vision_encoder: VisionEncoder
    settings: manifest.Manifest


@dataclass(frozen=True)
class _Media:
    """A picture, video or clip, encoded."""

    size: MediaSize
    encoded: Mapping[Kind, Array]


class Question:
    """One user's turn, number `turn` of the conversation."""

    def __init__(self, senses: Senses, turn: int) -> None:
        self.turn = turn
        self._senses = senses
        self._entries: list[Entry] = []  # as the chat template sees them
        self._media: list[_Media | None] = []  # in their order; None is the live sound
        self._sound = MelStream(senses.settings.audio)
        self._given: list[int] = []  # token ids that went into the history, a placeholder for each of the media

    @property
    def empty(self) -> bool:
        """Whether there is nothing in it yet; less than 30 ms of sound is nothing."""
        return not self._entries

    @property
    def has_sound(self) -> bool:
        """Whether there is sound in it."""
        return any(entry["type"] == "audio" for entry in self._entries)

    def asking(self, text: str) -> Question:
        """The same question with a text at its end; this one stays as it is."""
        asking = copy.copy(self)
        asking._entries = [*self._entries, template_entry(Text(text))]
        return asking

    def attach(self, part: Part) -> None:
        """Add a part, encoded at once. Raises `AudioError` or `ImageError`."""
        if not isinstance(part, Text):
            senses = self._senses
            size = media_size(part, senses.settings.audio, senses.settings.vision)
            self._media.append(_Media(size, encode_part(part, senses.audio_encoder, senses.vision_encoder)))
        self._entries.append(template_entry(part))

    def listen(self, samples: npt.NDArray[np.float32]) -> list[Array]:
        """Add sound `(n,)`, all of which is one part; returns the embeddings `(50, D)` of the blocks it completes."""
        blocks = self._sound.push(samples)
        if None not in self._media and audio_tokens(self._sound.frames):
            self._entries.append({"type": "audio"})
            self._media.append(None)
        return [self._senses.audio_encoder.encode_block(block) for block in blocks]

    def settled(self, first_position: int) -> Iterator[Piece]:
        """What can no longer change and was not given yet, but for the live sound; it is given now."""
        ids = self._ids()
        places = self._placeholders(ids)
        end = places[self._media.index(None)] if None in self._media else places[-1] + 1 if places else 0
        if end > len(self._given):
            yield self._laid_out(ids, len(self._given), end, first_position)
            self._given = ids[:end]

    def heard(self, embeddings: Array, first_position: int) -> Iterator[Piece]:
        """Embeddings `(n, D)` of the live sound; `settled` comes before the first."""
        token, count = self._senses.settings.tokens.audio, len(embeddings)
        piece = Piece.of_text([token] * count, first_position, self.turn)
        yield replace(piece, is_media=np.ones(count, np.bool_), embeddings=embeddings)

    def rest(self, first_position: int) -> Iterator[Piece]:
        """All that is left if the turn ends here, up to where the reply begins. The turn itself stays as it is."""
        ids, start, position = self._ids(), len(self._given), first_position
        if None in self._media:
            place = self._placeholders(ids)[self._media.index(None)]
            if place > start:
                yield (piece := self._laid_out(ids, start, place, position))
                position = piece.next_position
            for mel in self._sound.rest():
                if count := audio_tokens(mel.shape[1]):
                    yield from self.heard(self._senses.audio_encoder.encode_block(mel), position)
                    position += count
            start = place + 1
        yield self._laid_out(ids, start, len(ids), position)

    def remaining_positions(self) -> int:
        """How many positions `rest` will have at most, known before anything is encoded for it."""
        ids = self._ids()
        media = [part for part in self._media[len(self._placeholders(self._given)) :] if part is not None]
        embeddings = sum(len(rows) for part in media for rows in part.encoded.values())
        sound = audio_tokens(self._senses.settings.audio.block_frames) + 1
        return len(ids) - len(self._given) + embeddings + 2 * len(media) + sound  # 2: around the sound of a video

    def _ids(self) -> list[int]:
        """Token ids of the turn as it is now, and of what opens the reply."""
        ids = self._senses.turns.user_ids(self._entries)
        if ids[: len(self._given)] != self._given:
            raise BundleError("the checkpoint's chat template changes the beginning of a turn when something is added")
        return ids

    def _placeholders(self, ids: list[int]) -> list[int]:
        """Where in `ids` the media stand."""
        places: list[int] = placeholders(ids, self._senses.settings.tokens).tolist()
        return places

    def _laid_out(self, ids: list[int], start: int, end: int, first_position: int) -> Piece:
        """The ids from `start` to `end`, among which the live sound is not, with their media."""
        first, last = (len(self._placeholders(ids[:place])) for place in (start, end))
        media = [part for part in self._media[first:last] if part is not None]
        settings = self._senses.settings
        prompt = lay_out(
            ids[start:end], [part.size for part in media], settings.tokens, settings.vision, first_position
        )
        return Piece.of(prompt, [part.encoded for part in media], self.turn)
