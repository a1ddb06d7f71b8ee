"""`Conversation` for programs that use asyncio: the same methods, to be awaited, and events to iterate over.

    conversation = AsyncConversation(omni.conversation())
    await conversation.listen(samples)
    async for event in conversation.respond():
        ...

The work is done in threads, as it is without asyncio; the event loop is never held up.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import numpy.typing as npt

from .conversation import Conversation
from .events import AudioChunk, Event, TurnEnd
from .messages import Part


class AsyncConversation:
    """A conversation whose methods do not block; what each does and raises is said there."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation

    async def listen(self, samples: npt.NDArray[np.float32]) -> None:
        """`Conversation.listen`."""
        await asyncio.to_thread(self._conversation.listen, samples)

    async def attach(self, part: Part) -> None:
        """`Conversation.attach`."""
        await asyncio.to_thread(self._conversation.attach, part)

    async def respond(self) -> AsyncIterator[Event]:
        """`Conversation.respond`. When the iteration is cancelled or left, the reply ends where it was taken to."""
        events = await asyncio.to_thread(self._conversation.respond)
        taken_samples, over = 0, False
        try:
            while not over:
                event = await asyncio.to_thread(next, events)
                taken_samples += len(event.samples) if isinstance(event, AudioChunk) else 0
                over = isinstance(event, TurnEnd)
                yield event
        finally:
            if not over:  # a thread may still be waiting for an event: this wakes it
                await asyncio.shield(asyncio.to_thread(self._conversation.interrupt, taken_samples))

    async def interrupt(self, played_samples: int) -> str:
        """`Conversation.interrupt`."""
        return await asyncio.to_thread(self._conversation.interrupt, played_samples)

    async def close(self) -> None:
        """`Conversation.close`."""
        await asyncio.to_thread(self._conversation.close)
