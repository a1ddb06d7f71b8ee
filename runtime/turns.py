"""The chat template taken apart, so that a conversation can be fed as it happens, never rendered again as a whole.

Inputs: a tokenizer with its template, the system's instructions → outputs: token ids of the instructions, of a user's
turn with what opens the reply, and of what closes a reply.

The pieces are what the template itself adds for them. A template for which a conversation is not the row of its pieces
cannot be streamed; that is found here, before anything is heard.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import BundleError
from .tokenizer import Entry, Tokenizer

_ANY: list[Entry] = [{"type": "text", "text": "a"}]


class Turns:
    """The pieces of conversations under one system prompt."""

    def __init__(self, tokenizer: Tokenizer, system: str) -> None:
        """Raises `BundleError` for a template that cannot be taken apart, `InputError` if it refuses the prompt."""
        self._tokenizer = tokenizer
        self._system: Entry = {"role": "system", "content": [{"type": "text", "text": system}]}
        self.system_ids = self._encode([], open_reply=False)
        """Token ids of the instructions."""
        reply = self._entry("assistant", _ANY)
        asked = self.system_ids + self.user_ids(_ANY)
        replied = self._encode([self._entry("user", _ANY), reply], open_reply=False)
        said = tokenizer.encode("a")
        self.closing_ids = _behind(asked + said, replied)
        """Token ids that come after the last token of a reply."""
        twice = [self._entry("user", _ANY), reply, self._entry("user", _ANY)]
        _behind(replied + self.user_ids(_ANY), self._encode(twice, open_reply=True))

    def user_ids(self, content: Sequence[Entry]) -> list[int]:
        """Token ids of a user's turn and of what opens the reply to it, one placeholder for each media part."""
        asked = self._encode([self._entry("user", content)], open_reply=True)
        return _behind(self.system_ids, asked)

    def _encode(self, entries: Sequence[Entry], *, open_reply: bool) -> list[int]:
        return self._tokenizer.encode_chat([self._system, *entries], open_reply=open_reply)

    @staticmethod
    def _entry(role: str, content: Sequence[Entry]) -> Entry:
        return {"role": role, "content": list(content)}


def _behind(first: list[int], whole: list[int]) -> list[int]:
    """What follows `first` in `whole`, which must begin with it."""
    if whole[: len(first)] != first:
        raise BundleError(
            "the checkpoint's chat template rewrites earlier turns when later ones come, so a conversation cannot be "
            "fed as it happens; use Omni.respond with the whole conversation, or export a checkpoint with the "
            "published template"
        )
    return whole[len(first) :]
