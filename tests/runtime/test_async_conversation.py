"""The asyncio facade: the same events as without, an event loop that is never held up, and clean cancelling."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from nearfield.errors import InputError
from nearfield.runtime.async_conversation import AsyncConversation
from nearfield.runtime.events import AudioChunk, Event, TextDelta, TurnEnd
from nearfield.runtime.messages import Text
from nearfield.runtime.omni import Omni
from sounds import sound

SHORT: dict[str, Any] = {"max_tokens": 8, "max_codes": 60, "seed": 1}
SPOKEN = sound("noise", 50_000, 1)


@pytest.fixture(scope="module")
def omni(bundle_3b: Path) -> Omni:
    return Omni.load(bundle_3b, context=512, threads=1)


def spoken(events: list[Event]) -> tuple[list[str], int]:
    samples = sum(len(event.samples) for event in events if isinstance(event, AudioChunk))
    return [event.text for event in events if isinstance(event, TextDelta)], samples


def test_the_events_are_those_without_asyncio(omni: Omni) -> None:
    async def converse() -> list[Event]:
        conversation = AsyncConversation(omni.conversation(**SHORT))
        await conversation.attach(Text("Listen."))
        await conversation.listen(SPOKEN)
        return [event async for event in conversation.respond()]

    plain = omni.conversation(**SHORT)
    plain.attach(Text("Listen."))
    plain.listen(SPOKEN)
    expected = spoken(list(plain.respond()))
    assert spoken(asyncio.run(converse())) == expected
    assert expected[1] > 0


def test_others_run_while_a_reply_is_made_and_can_interrupt_it(omni: Omni) -> None:
    async def converse() -> tuple[list[Event], str]:
        conversation = AsyncConversation(omni.conversation(**(SHORT | {"max_codes": 1000})))
        await conversation.attach(Text("Well?"))

        async def interrupt() -> str:
            await first_sound.wait()
            return await conversation.interrupt(0)

        first_sound, events = asyncio.Event(), list[Event]()
        interrupting = asyncio.create_task(interrupt())
        async for event in conversation.respond():
            events.append(event)
            if isinstance(event, AudioChunk):
                first_sound.set()
        return events, await interrupting

    events, heard = asyncio.run(converse())
    assert heard == ""
    end = events[-1]
    assert isinstance(end, TurnEnd)
    assert end.stop_reason == "interrupted"


def test_a_cancelled_task_ends_its_reply(omni: Omni) -> None:
    conversation = omni.conversation(**(SHORT | {"max_codes": 1000}))

    async def take(first: asyncio.Event) -> None:
        shared = AsyncConversation(conversation)
        await shared.attach(Text("Well?"))
        async for _ in shared.respond():
            first.set()

    async def converse() -> None:
        first = asyncio.Event()
        taking = asyncio.create_task(take(first))
        await first.wait()
        taking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await taking

    asyncio.run(converse())
    assert conversation._reply is None or conversation._answer.kept is not None  # it was interrupted
    conversation.attach(Text("Go on."))
    assert len(spoken(list(conversation.respond()))[0]) == 8


def test_errors_reach_who_awaits(omni: Omni) -> None:
    async def converse() -> None:
        conversation = AsyncConversation(omni.conversation(**SHORT))
        with pytest.raises(InputError, match="nothing was asked"):
            async for _ in conversation.respond():
                pass
        await conversation.close()
        with pytest.raises(InputError, match="this conversation is over"):
            await conversation.listen(SPOKEN)

    asyncio.run(converse())
