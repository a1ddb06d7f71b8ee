"""`nearfield talk` on virtual devices, from sound to sound: how soon it answers and falls silent, 200 turns in a row.

    python docs/measurements/voice.py [faults] [answers] [interruptions] [echo] [soak] > docs/measurements/voice.txt

Needs the extra `[test]`, PulseAudio's packages (tests/audio_rig.py) and a quiet machine. Questions are nano's held-out
recordings, played into a virtual microphone in whose room there is faint noise; everything is measured on recordings of
both devices, with one clock. Linux.

faults         six things that happen to devices, five times each: how soon it is told, and how soon it is over
answers        30 turns: from the last sample of the question to the first of the answer at the speaker
interruptions  50 replies cut by a spoken question: from its first sample until the speaker is silent; and whether the
               model remembers what was heard
echo           50 replies while the microphone hears the speaker at −6 dB, then ten interruptions
soak           200 turns with the program itself: underruns, memory of both its processes, latency at the end beside
               that at the beginning
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import psutil
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import talk_process
from audio_rig import RATE_HZ, AudioRig, Recorder
from nearfield.apps.cli.common import DEMO_BUNDLE
from nearfield.apps.voice.assistant import Assistant
from nearfield.apps.voice.notices import Notice, StateChanged, Trouble, TurnDone
from nearfield.apps.voice.sound_device import DeviceChoice, SoundDevice
from nearfield.apps.voice.store import ConversationStore
from nearfield.apps.voice.turn_taking import State
from nearfield.nano.questions import HELDOUT, load
from nearfield.runtime.audio import read_audio
from nearfield.runtime.omni import Omni
from sound_listener import Listener, right

Samples = npt.NDArray[np.float32]

ROOM_DB = -60.0
AUDIBLE = 10 ** (-40 / 20)
CONTEXT = 640
"""As `nearfield talk` loads nano."""
THREADS = 1
"""For each operator, so that a reply's stages and the audio have cores to share."""


@dataclass
class Talk:
    """An assistant at a rig, and what it told, each with its time."""

    rig: AudioRig
    omni: Omni
    assistant: Assistant
    device: SoundDevice
    told: list[tuple[float, Notice]] = field(default_factory=list)

    def until(self, what: Callable[[Notice], bool], seconds: float = 30.0) -> Notice | None:
        """Take notices until one is as wished; None when none comes."""
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            notice = self.assistant.notice(0.05)
            if notice is not None:
                self.told.append((now, notice))
                if isinstance(notice, Trouble):
                    tqdm.write(f"trouble: {notice.text}", file=sys.stderr)
                if what(notice):
                    return notice
        return None

    def done(self) -> TurnDone | None:
        """Wait for the end of the turn."""
        notice = self.until(lambda notice: isinstance(notice, TurnDone))
        return notice if isinstance(notice, TurnDone) else None

    def reach(self, state: State) -> bool:
        """Wait for a state."""
        return self.until(lambda notice: notice == StateChanged(state)) is not None

    def count(self, state: State, since: int = 0) -> int:
        """How often it was in a state."""
        return sum(notice == StateChanged(state) for _, notice in self.told[since:])


def use(rig: AudioRig) -> None:
    """Have this process, and those it starts, find the rig's devices."""
    for name in ("PULSE_SERVER", "XDG_RUNTIME_DIR"):
        os.environ[name] = rig.environment[name]


@contextmanager
def talking(omni: Omni) -> Iterator[Talk]:
    """A rig with an assistant that listens."""
    with AudioRig() as rig, rig.room_noise(ROOM_DB, seconds=3600):
        use(rig)
        device = SoundDevice(DeviceChoice())
        assistant = Assistant(omni, device, seed=0)
        talk = Talk(rig, omni, assistant, device)
        try:
            talk.until(lambda _: False, 2.0)  # echo cancellation and voice activity get used to the room
            yield talk
        finally:
            assistant.close()


def questions(count: int, seed: int, *, least_words: int = 1) -> list[Samples]:
    """Held-out recordings of questions with replies of so many words, in voices nano knows."""
    items = [item for item in load() if item.task == "sentences" and len(item.reply.split()) >= least_words]
    recordings = [item.recording for item in items if item.recording is not None]
    chosen = random.Random(seed).choices(recordings, k=count)
    return [read_audio(HELDOUT / name) for name in chosen]


def audible(recorder: Recorder, start_s: float, end_s: float | None = None) -> npt.NDArray[np.int64]:
    """The samples in a stretch of time at which something is to be heard, by 5 ms of sound."""
    start = max(0, recorder.at(start_s))
    samples = recorder.samples(start)
    if end_s is not None:
        samples = samples[: max(0, recorder.at(end_s) - start)]
    window = RATE_HZ // 200
    loud = np.sqrt(np.convolve(samples**2, np.ones(window) / window, "same")) > AUDIBLE if len(samples) > window else []
    return start + np.flatnonzero(loud)


def ask(talk: Talk, question: Samples) -> float:
    """Play a question into the microphone; returns when its last audible sample passed."""
    began = time.monotonic()
    talk.rig.say(question).wait()
    return talk.rig.feed.time_s(int(audible(talk.rig.feed, began - 0.05, time.monotonic() + 0.2)[-1]))


def with_marks(omni: Omni, token_ids: Sequence[int]) -> str:
    """Token ids as text in which every token that is no text is a "<"."""
    tokens = (omni.parts.tokenizer.token_bytes(token) for token in token_ids)
    return b"".join(token or b"<" for token in tokens).decode("utf-8", "replace")


def percentiles(name: str, values_ms: Sequence[float]) -> str:
    """A line of figures in milliseconds."""
    p50, p95 = np.percentile(values_ms, (50, 95))
    return f"{name:<66} p50 {p50:>6.0f}   p95 {p95:>6.0f}   most {max(values_ms):>6.0f} ms"


def floor_ms(talk: Talk, times: int = 10) -> list[float]:
    """What the devices take by themselves: from `play` to the speaker, plus from the microphone to `read`."""
    took = []
    for number in range(times):
        began = time.monotonic()
        reply = 10_000 + number
        talk.device.play(reply, (0.3 * np.sin(np.arange(4800) * 0.3)).astype(np.float32))
        talk.device.finish(reply)
        talk.until(lambda _: False, 0.6)
        out = talk.rig.speaker.time_s(int(audible(talk.rig.speaker, began)[0])) - began
        took.append(1000 * out)
    return took


@dataclass(frozen=True)
class Fault:
    """What happens to a rig in whose room there is noise, and what puts it right."""

    name: str
    begin: Callable[[AudioRig, ExitStack], object]
    end: Callable[[AudioRig], object]


SLOW = Path(__file__).parents[2] / "tests" / "apps" / "voice" / "slow_audio_process.py"
FAULTS = (
    Fault("microphone unplugged", lambda rig, _: rig.unload("ci_mic"), lambda rig: rig.load("ci_mic")),
    Fault("microphone suspended", lambda rig, _: rig.suspend("ci_mic"), lambda rig: rig.suspend("ci_mic", on=False)),
    Fault(
        "speaker suspended", lambda rig, _: rig.suspend("ci_speaker"), lambda rig: rig.suspend("ci_speaker", on=False)
    ),
    Fault("sound server killed", lambda rig, _: rig.kill_server(), lambda rig: rig.start()),
    Fault("digital silence", lambda _, noise: noise.close(), lambda _: None),
    Fault("callbacks that take 100 ms", lambda rig, _: slow(rig).touch(), lambda rig: slow(rig).unlink()),
)


def slow(rig: AudioRig) -> Path:
    """The file that makes callbacks slow while it is there."""
    return rig.folder / "slow"


def suffer(fault: Fault) -> tuple[float, float]:
    """Milliseconds from the fault until it is told; and from what puts it right until sound is heard again."""
    with AudioRig() as rig:
        use(rig)
        device = SoundDevice(DeviceChoice(), command=[sys.executable, str(SLOW), str(slow(rig))])
        with Listener(device) as listener:
            with ExitStack() as noise:
                noise.enter_context(rig.room_noise(ROOM_DB))
                listener.wait(lambda: listener.states and right(listener.state), 5.0)
                time.sleep(1.0)  # with the noise
                since, began_s = len(listener.states), time.monotonic()
                fault.begin(rig, noise)
                listener.wait_for_state(lambda state: not right(state), 10.0, since)
                told_s = next(at_s for at_s, state in listener.states[since:] if not right(state))
                time.sleep(random.uniform(0.5, 1.5))  # it must not matter which attempt to begin again it meets
            fault.end(rig)
            ended_s = time.monotonic()
            with rig.room_noise(ROOM_DB):
                listener.wait(lambda: right(listener.state) and listener.frames[-1][0] > ended_s, 10.0)
                return 1000 * (told_s - began_s), 1000 * (time.monotonic() - ended_s)


def faults(times: int = 5) -> None:
    """How soon the program tells what happened to a device, and how soon it hears again when it is put right."""
    print(f"faults, {times} times each; told within 1000 and over within 3000 ms is wanted")
    for fault in FAULTS:
        told, over = zip(*(suffer(fault) for _ in tqdm(range(times), desc=fault.name)), strict=True)
        print(percentiles(f"  {fault.name}: told after", told))
        print(percentiles(f"  {'':{len(fault.name)}}  over after", over), flush=True)


def answers(omni: Omni, turns: int = 30) -> None:
    """From the end of the question to the first of the answer, measured on the recordings."""
    heard, wait, token, sound = [], [], [], []
    with talking(omni) as talk:
        for question in tqdm(questions(turns, 1), desc="answers"):
            ended = ask(talk, question)
            done = talk.done()
            if done is None or done.latency.first_sound_ms is None:
                print("a question was not answered")
                continue
            first = talk.rig.speaker.time_s(int(audible(talk.rig.speaker, ended)[0]))
            heard.append(1000 * (first - ended))
            wait.append(done.latency.silence_wait_ms or 0.0)
            token.append(done.latency.first_token_ms or 0.0)
            sound.append(done.latency.first_audio_ms or 0.0)
            talk.until(lambda _: False, 0.3)
    print(f"answers: {len(heard)} of {turns} questions answered")
    print(percentiles("  last sample of the question → first of the answer", heard))
    print(percentiles("  of it, waiting for silence", wait))
    rest = [total - silence for total, silence in zip(heard, wait, strict=True)]
    print(percentiles("  of it, all else", rest))
    print(percentiles("  begun at a pause of 192 ms: first token after", token))
    print(percentiles("  begun at a pause of 192 ms: first sound made after", sound))
    with talking(omni) as talk:
        print(percentiles("  the rig's own part: `play` → first sample at the speaker", floor_ms(talk)))


def interruptions(omni: Omni, times: int = 50, *, echo: bool = False) -> None:
    """From the first sample of an interruption to the last of the reply; and what is remembered of it."""
    silent, remembered, cut, rng = [], 0, 0, random.Random(2)
    with talking(omni) as talk:
        if echo:
            talk.rig.echo(-6.0)
        pairs = list(zip(questions(times, 3, least_words=6), questions(times, 6), strict=True))
        for first, second in tqdm(pairs, desc="interruptions"):
            ask(talk, first)
            if not talk.reach(State.SPEAKING):
                continue
            talk.until(lambda _: False, rng.uniform(0.2, 0.9))
            began = time.monotonic()
            talk.rig.say(second)
            done = talk.done()
            if done is not None and done.interrupted:
                cut += 1
                loud = audible(talk.rig.speaker, began - 0.2, began + 1.2)
                speech = audible(talk.rig.feed, began, began + 1.2) if not echo else None
                if speech is not None and len(speech) and len(loud):
                    onset, end = talk.rig.feed.time_s(int(speech[0])), talk.rig.speaker.time_s(int(loud[-1]))
                    silent.append(1000 * (end - onset))
                # The reply as it was heard, and nothing behind it but the end of the turn, which comes with the next.
                history = with_marks(omni, talk.assistant._mind._conversation.history.token_ids.tolist())
                if f"{done.reply_text.strip()}<" in f"{history}<":
                    remembered += 1
                else:
                    print(f"not remembered: {done.reply_text!r}, but {history[-160:]!r}")
                done = talk.done()  # of the second question
            talk.until(lambda notice: notice == StateChanged(State.IDLE), 1.0)
            talk.until(lambda _: False, 0.3)
    what = "interruptions with echo" if echo else "interruptions"
    print(f"{what}: {cut} of {times} replies were cut; the model remembers what was heard of {remembered} of {cut}")
    if silent:
        print(percentiles("  first sample of speech → silence at the speaker", silent))


def echo(omni: Omni, times: int = 50) -> None:
    """Replies while the microphone hears them."""
    held = interrupted = answered = 0
    with talking(omni) as talk:
        talk.rig.echo(-6.0)
        for question in tqdm(questions(times, 4), desc="echo"):
            since = len(talk.told)
            ask(talk, question)
            done = talk.done()
            answered += done is not None
            interrupted += done is not None and done.interrupted
            held += talk.count(State.DOUBTFUL, since)
            talk.until(lambda _: False, 0.5)
        turns = sum(isinstance(notice, TurnDone) for _, notice in talk.told)
    print(
        f"echo at −6 dB: {answered} of {times} questions answered; it held its reply {held} times and interrupted "
        f"itself {interrupted} times; {turns - answered} turns nobody spoke"
    )
    interruptions(omni, 10, echo=True)


def seconds(sound: Samples | None, rate_hz: int) -> float:
    """How long a kept sound is."""
    return 0.0 if sound is None else len(sound) / rate_hz


def soak(turns: int = 200) -> None:
    """Many turns in a row with `nearfield talk` as people start it, looked at from outside."""
    memory: dict[str, list[float]] = {"model and talk": [], "audio process": []}
    stolen_ms: list[float] = []  # by other machines on the same processor, both cores together
    computed_s: list[float] = []  # by the model and talk
    lost: list[int] = []
    with TemporaryDirectory() as folder:
        data = {"NEARFIELD_DATA": folder}
        with (
            AudioRig() as rig,
            rig.room_noise(ROOM_DB, seconds=7200),
            talk_process.talking(rig, environment=data) as lines,
        ):
            time.sleep(2.0)
            talk, began = psutil.Process(lines.pid), len(lines.seen)
            for number, question in enumerate(tqdm(questions(turns, 5), desc="soak"), 1):
                since, stolen_s, computed = len(lines.seen), psutil.cpu_times().steal, sum(talk.cpu_times()[:2])
                rig.say(question).wait()
                try:
                    lines.wait("^timing: ", since, seconds=30.0)
                except AssertionError:
                    lost.append(number)
                    tqdm.write(f"not answered: {lines.seen[since:]}", file=sys.stderr)
                stolen_ms.append(1000 * (psutil.cpu_times().steal - stolen_s))
                computed_s.append(sum(talk.cpu_times()[:2]) - computed)
                for recorder in (rig.speaker, rig.feed):
                    recorder.forget()
                with suppress(psutil.NoSuchProcess):  # an audio process that has just been given up
                    for name, process in zip(memory, [talk, *talk.children()], strict=False):
                        info = process.memory_info()
                        memory[name].append((info.rss - info.shared) / 2**20)  # not the pages of mapped files
            told = [line for line in lines.seen[began:] if line.startswith(("device", "trouble"))]
        store = ConversationStore(Path(folder) / "conversations.sqlite")
        kept = store.turns(store.conversations()[0].id)
    print(f"soak: {turns - len(lost)} of {turns} questions answered, {len(kept)} turns kept; not answered: {lost}")
    print(f"  told of devices and troubles: {told}")
    starved = [number for number, turn in enumerate(kept, 1) if turn.timing["underruns"]]
    print(f"  underruns in turns {starved or 'none'}")
    if starved and not lost:  # or turns are not questions
        sounded_s = [seconds(turn.question_sound, 16_000) + seconds(turn.reply_sound, 24_000) for turn in kept]
        slower = np.array(computed_s) / sounded_s
        slower /= np.median(slower)
        why = ", ".join(f"{stolen_ms[number - 1]:.0f} ms and {slower[number - 1]:.2f}" for number in starved)
        print(f"  meanwhile the host gave its cores to others, and the processor time of the same work was × {why};")
        print(f"  p95 of all turns {np.percentile(stolen_ms, 95):.0f} ms and {np.percentile(slower, 95):.2f}")
    for name, values in memory.items():
        shown = ", ".join(f"{values[turn - 1]:.1f}" for turn in range(50, len(values) + 1, 50))
        half = len(values) // 2
        slope = np.polyfit(np.arange(len(values) - half), values[half:], 1)[0] * 1024
        print(f"  memory of {name} after every 50 turns: {shown} MiB; second half {slope:+.1f} KiB a turn")
    whole = np.array([turn.timing["first_sound_ms"] or np.nan for turn in kept])
    waited = np.array([turn.timing["silence_wait_ms"] or 0.0 for turn in kept])
    for what, took in (("answering", whole), ("of it, all but the wait for silence", whole - waited)):
        first, last = (float(np.nanpercentile(part, 95)) for part in (took[:50], took[-50:]))
        print(f"  {what}, p95: first 50 turns {first:.0f} ms, last 50 {last:.0f} ms, {last / first:.2f}")


def main(names: Sequence[str]) -> None:
    """Measure what is named, or all."""
    if not names or "faults" in names:
        faults()
    parts = [part for part in (answers, interruptions, echo) if not names or part.__name__ in names]
    if parts:
        print(f"{os.cpu_count()} cores, {THREADS} thread an operator, eagerness medium", flush=True)
        omni = Omni.load(DEMO_BUNDLE, threads=THREADS, context=CONTEXT)
        for part in parts:
            part(omni)
            sys.stdout.flush()
    if not names or "soak" in names:
        soak()


if __name__ == "__main__":
    main(sys.argv[1:])
