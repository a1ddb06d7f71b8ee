"""Whole spoken conversations with nano, on devices that are lists of samples: what is said, held back, cut, kept."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pytest
from nearfield.apps.cli.common import DEMO_BUNDLE
from nearfield.apps.voice.assistant import Assistant
from nearfield.apps.voice.frames import FRAME_SAMPLES, RATE_HZ
from nearfield.apps.voice.notices import (
    DeviceNotice,
    HeardText,
    Notice,
    ReplyText,
    StateChanged,
    Trouble,
    TurnDone,
)
from nearfield.apps.voice.sound_device import DeviceChoice, DeviceState, Heard, Played, SoundDevice
from nearfield.apps.voice.store import ConversationStore
from nearfield.apps.voice.turn_taking import State
from nearfield.errors import ImageError, NearfieldError, UnknownVoiceError
from nearfield.runtime.audio import read_audio
from nearfield.runtime.omni import Omni

Samples = npt.NDArray[np.float32]
N = TypeVar("N")

FRAME_S = FRAME_SAMPLES / RATE_HZ
PLAYED_A_FRAME = round(24_000 * FRAME_S)
DEMO = DEMO_BUNDLE.parent
SUM, AGAIN, PICTURE = (read_audio(DEMO / f"question-{number}.flac") for number in (1, 2, 3))
SECONDS_AT_MOST = 120.0


class FakeDevice(SoundDevice):
    """Hears what it is given, then silence; plays as time passes, which is with every frame that is read."""

    def __init__(self) -> None:
        super().__init__(DeviceChoice())
        self.coming: deque[Heard | DeviceState] = deque()
        self.now_s = 100.0
        self.queued: dict[int, list[Samples]] = {}
        self.done: dict[int, Played] = {}
        self.current, self.held, self.holds, self.closed = 0, False, 0, False
        self.finished: set[int] = set()
        self.guard = threading.Lock()

    def say(self, samples: Samples) -> None:
        """Be heard by the microphone."""
        padded = np.pad(samples, (0, -len(samples) % FRAME_SAMPLES))
        for frame in padded.reshape(-1, FRAME_SAMPLES):
            self.coming.append(Heard(frame.copy(), float(np.sqrt(np.mean(frame**2))), 0.0))

    def start(self) -> None:
        self.coming.append(DeviceState(True, "microphone", "speaker", None))

    def read(self, timeout_s: float) -> Heard | DeviceState | None:
        time.sleep(0.002)
        if self.coming and isinstance(self.coming[0], DeviceState):
            return self.coming.popleft()
        self._pass_time()
        heard = self.coming.popleft() if self.coming else Heard(np.zeros(FRAME_SAMPLES, np.float32), 0.0, 0.0)
        assert isinstance(heard, Heard)
        return Heard(heard.samples, heard.level, self.now_s)

    def _pass_time(self) -> None:
        self.now_s += FRAME_S
        with self.guard:
            number = self.current
            there = sum(map(len, self.queued.get(number, [])))
            was = self.done.get(number, Played(0, False, None, 0))
            samples = was.samples if self.held else min(there, was.samples + PLAYED_A_FRAME)
            first = self.now_s if was.first_sample_s is None and samples else was.first_sample_s
            self.done[number] = Played(samples, number in self.finished and samples == there, first, 0)

    def play(self, reply: int, samples: Samples) -> None:
        with self.guard:
            self.current = reply
            self.queued.setdefault(reply, []).append(samples)

    def finish(self, reply: int) -> None:
        with self.guard:
            self.finished.add(reply)

    def hold(self) -> None:
        self.held, self.holds = True, self.holds + 1

    def resume(self) -> None:
        self.held = False

    def drop(self) -> None:
        with self.guard:
            self.held = False
            played = self.done.get(self.current, Played(0, False, None, 0)).samples
            self.queued[self.current] = [np.concatenate([np.empty(0, np.float32), *self.queued.get(self.current, [])])]
            self.queued[self.current][0] = self.queued[self.current][0][:played]

    def played(self, reply: int) -> Played:
        with self.guard:
            return self.done.get(reply, Played(0, False, None, 0))

    def close(self) -> None:
        self.closed = True


class Watched:
    """An assistant, and every notice it gave so far."""

    def __init__(self, assistant: Assistant, device: FakeDevice) -> None:
        self.assistant, self.device = assistant, device
        self.seen: list[Notice] = []

    def until(self, kind: type[N], which: Callable[[N], bool] = lambda _: True) -> N:
        """Take notices until one of a kind comes."""
        end = time.monotonic() + SECONDS_AT_MOST
        while time.monotonic() < end:
            notice = self.assistant.notice(0.1)
            if notice is not None:
                self.seen.append(notice)
            if isinstance(notice, kind) and which(notice):
                return notice
        raise AssertionError(f"no {kind.__name__} came, but {self.seen[-20:]}")

    def reach(self, state: State) -> None:
        self.until(StateChanged, lambda notice: notice.state is state)

    def of(self, kind: type[N]) -> list[N]:
        return [notice for notice in self.seen if isinstance(notice, kind)]

    @property
    def states(self) -> list[State]:
        return [notice.state for notice in self.of(StateChanged)]


@pytest.fixture(scope="module")
def omni() -> Omni:
    return Omni.load(DEMO_BUNDLE, threads=1)


@pytest.fixture
def store(tmp_path: Path) -> ConversationStore:
    return ConversationStore(tmp_path / "conversations.sqlite")


Begin = Callable[..., Watched]


@pytest.fixture
def begin(omni: Omni, store: ConversationStore) -> Iterator[Begin]:
    begun: list[Assistant] = []

    def begin(**options: Any) -> Watched:
        device = FakeDevice()
        settings: dict[str, Any] = {"store": store, "seed": 1, **options}
        begun.append(Assistant(omni, device, **settings))
        return Watched(begun[-1], device)

    yield begin
    for assistant in begun:
        assistant.close()
    left = {thread.name for thread in threading.enumerate()}
    assert left.isdisjoint({"nearfield ear", "nearfield mind", "nearfield mouth"})


def test_a_spoken_question_is_answered_aloud_and_kept(begin: Begin, store: ConversationStore) -> None:
    talk = begin()
    talk.device.say(SUM)
    done = talk.until(TurnDone)
    assert talk.states == [State.LISTENING, State.PAUSED, State.THINKING, State.SPEAKING, State.IDLE]
    assert done.reply_text == talk.of(ReplyText)[-1].text == "Seven plus four is eleven."
    assert not done.interrupted
    latency = done.latency
    assert latency.silence_wait_ms is not None and 600 <= latency.silence_wait_ms <= 700  # medium: 640, in frames
    assert latency.first_sound_ms is not None and latency.first_sound_ms >= latency.silence_wait_ms
    assert latency.first_audio_ms is not None and latency.first_token_ms is not None

    (conversation,) = store.conversations()
    (turn,) = store.turns(conversation.id)
    assert turn.reply_text == turn.heard_text == done.reply_text
    assert turn.question_sound is not None and turn.reply_sound is not None
    spoken = np.flatnonzero(np.abs(turn.question_sound) > 0.05)
    said = np.flatnonzero(np.abs(SUM) > 0.05)
    assert len(spoken) == pytest.approx(len(said), rel=0.01)  # nothing of what was said is missing
    assert len(turn.reply_sound) == sum(map(len, talk.device.queued[talk.device.current]))


def test_later_questions_know_of_earlier_ones(begin: Begin) -> None:
    talk = begin()
    talk.device.say(SUM)
    talk.until(TurnDone)
    talk.device.say(AGAIN)
    assert talk.until(TurnDone).reply_text == "Seven plus four is eleven."


def test_who_goes_on_after_a_pause_asked_one_question(begin: Begin, store: ConversationStore) -> None:
    talk = begin()
    talk.device.say(np.concatenate([SUM, np.zeros(round(0.5 * RATE_HZ), np.float32), SUM]))
    done = talk.until(TurnDone)
    assert State.PAUSED in talk.states
    assert talk.states.count(State.SPEAKING) == 1
    assert done.question_s > 2 * len(SUM) / RATE_HZ
    assert len(store.turns(store.conversations()[0].id)) == 1


def test_an_interruption_is_silence_and_the_memory_of_what_was_heard(begin: Begin, store: ConversationStore) -> None:
    talk = begin()
    talk.device.say(SUM)
    talk.reach(State.SPEAKING)
    reply = talk.device.current
    while talk.device.played(reply).samples < 24_000:
        time.sleep(0.005)
    talk.device.say(AGAIN)
    first, second = talk.until(TurnDone), talk.until(TurnDone)
    assert first.interrupted and not second.interrupted
    assert "Seven plus four is eleven.".startswith(first.reply_text.strip())
    assert 0 < len(first.reply_text) < len("Seven plus four is eleven.")
    assert talk.device.holds == 1
    turns = store.turns(store.conversations()[0].id)
    assert [turn.heard_text for turn in turns] == [first.reply_text, second.reply_text]
    assert turns[0].reply_sound is not None
    assert 24_000 <= len(turns[0].reply_sound) <= 24_000 + 0.5 * 24_000


def test_a_cough_holds_the_reply_and_it_goes_on(begin: Begin) -> None:
    talk = begin()
    talk.device.say(SUM)
    talk.reach(State.SPEAKING)
    loudest = int(np.argmax(np.convolve(SUM**2, np.ones(3200), "valid")))
    talk.device.say(SUM[loudest : loudest + 3200])  # a fifth of a second
    done = talk.until(TurnDone)
    assert State.DOUBTFUL in talk.states
    assert not done.interrupted
    assert talk.device.played(talk.device.current).finished


def test_the_key_ends_a_reply(begin: Begin) -> None:
    talk = begin()
    talk.device.say(SUM)
    talk.reach(State.SPEAKING)
    while talk.device.played(talk.device.current).samples < 24_000:
        time.sleep(0.005)
    talk.assistant.interrupt()
    talk.reach(State.IDLE)
    assert talk.until(TurnDone).interrupted


def test_a_picture_goes_with_the_next_question(begin: Begin, store: ConversationStore, tmp_path: Path) -> None:
    talk = begin()
    picture = DEMO / "purple_star.png"
    talk.assistant.attach(picture)
    talk.device.say(PICTURE)
    assert talk.until(TurnDone).reply_text == "A purple star."
    assert store.turns(store.conversations()[0].id)[0].image == picture.read_bytes()
    (tmp_path / "no.png").write_text("no picture")
    with pytest.raises(ImageError, match="not an image"):
        talk.assistant.attach(tmp_path / "no.png")


def test_what_was_heard_is_told_when_it_is_wished(begin: Begin, store: ConversationStore) -> None:
    talk = begin(transcribe=True)
    talk.device.say(SUM)
    done = talk.until(TurnDone)
    (heard,) = talk.of(HeardText)
    assert heard.turn == done.turn
    assert store.turns(store.conversations()[0].id)[0].question_text == heard.text
    talk.assistant.transcribe(False)
    talk.device.say(AGAIN)
    assert talk.until(TurnDone).reply_text == "Seven plus four is eleven."  # the branch left no trace
    assert len(talk.of(HeardText)) == 1


def test_nobody_listens_while_no_sound_comes(begin: Begin) -> None:
    talk = begin()
    talk.device.say(SUM[: len(SUM) // 2])
    talk.device.coming.append(DeviceState(False, None, None, "the microphone was unplugged; trying again"))
    talk.reach(State.IDLE)
    assert not talk.of(DeviceNotice)[-1].device.working
    assert State.SPEAKING not in talk.states
    talk.device.coming.append(DeviceState(True, "microphone", "speaker", None))
    talk.device.say(SUM)
    assert talk.until(TurnDone).reply_text


def test_a_failure_is_told_and_the_next_question_is_answered(
    begin: Begin, omni: Omni, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = begin()

    def fail(*_: object) -> Iterator[Samples]:
        raise NearfieldError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(omni.parts.token2wav, "push", fail)
        talk.device.say(SUM)
        assert "out of memory" in talk.until(Trouble).text
        talk.reach(State.IDLE)
    talk.device.say(SUM)
    assert talk.until(TurnDone).reply_text


def test_what_nobody_foresaw_is_raised_where_notices_are_taken(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    talk = begin()
    monkeypatch.setattr(talk.device, "read", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        talk.until(TurnDone)


def test_muted_nothing_is_heard(begin: Begin) -> None:
    talk = begin()
    talk.assistant.mute(True)
    talk.device.say(SUM)
    while talk.device.coming:
        talk.assistant.notice(0.01)
    assert talk.states == []
    talk.assistant.mute(False)
    talk.device.say(SUM)
    talk.until(TurnDone)


def test_push_to_talk_takes_what_is_said_between_two_presses(begin: Begin) -> None:
    talk = begin()
    talk.assistant.push_to_talk("toggle")
    talk.device.say(AGAIN)
    while talk.device.coming:
        time.sleep(0.01)
    talk.assistant.talk_key(True)
    talk.device.say(SUM)
    while talk.device.coming:
        time.sleep(0.01)
    talk.assistant.talk_key(True)
    done = talk.until(TurnDone)
    assert done.reply_text == "Seven plus four is eleven."
    assert done.latency.silence_wait_ms is not None and done.latency.silence_wait_ms < 300


def test_the_voice_can_be_changed(begin: Begin) -> None:
    talk = begin(voice="Chelsie")
    talk.assistant.voice("Ethan")
    talk.device.say(SUM)
    talk.until(TurnDone)
    with pytest.raises(UnknownVoiceError):
        talk.assistant.voice("Nobody")


def test_closing_in_the_midst_of_a_reply_takes_no_time(begin: Begin) -> None:
    talk = begin()
    talk.device.say(SUM)
    talk.reach(State.SPEAKING)
    talk.assistant.close()
    assert talk.device.closed


def test_without_a_store_the_conversation_can_still_be_saved(begin: Begin, tmp_path: Path) -> None:
    talk = begin(store=None)
    assert talk.assistant.save(tmp_path / "conversation") == []
    talk.device.say(SUM)
    talk.until(TurnDone)
    files = talk.assistant.save(tmp_path / "conversation")
    assert "Seven plus four is eleven." in files[0].read_text(encoding="utf-8")
