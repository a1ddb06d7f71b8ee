"""When a turn begins and ends: recordings with pauses, noises, and short words while a reply plays.

    .venv/bin/python docs/measurements/turn_taking.py | tee docs/measurements/turn_taking.txt

All of it goes through the detector and the state machine. A turn is two held-out recordings of one voice with a pause
between them. All times are of the sound, so they are the same on every machine; what the device and the model add is
not in them. Speech begins and ends where it comes within 35 dB of its loudest hundredth of a second. Needs nano's
synthesizers for the words.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import numpy.typing as npt
from nearfield.apps.voice.activity import VoiceActivity
from nearfield.apps.voice.frames import FRAME_MS, FRAME_SAMPLES, RATE_HZ
from nearfield.apps.voice.patience import Eagerness, Patience, Voiced
from nearfield.apps.voice.turn_taking import Answer, Hear, Hold, Interrupt, Speak, State, TakeBack, TurnTaking
from nearfield.nano.conditions import CONDITIONS
from nearfield.nano.questions import HELDOUT, load
from nearfield.nano.synthesizers import Voice, speak
from nearfield.runtime.audio import from_array, read_audio

Float32 = npt.NDArray[np.float32]

PAUSES_MS = (250, 500, 750, 1000)
TURNS = 20
"""For each pause and condition."""
HEARD: dict[str, Callable[[Float32], Float32]] = {
    "in silence": lambda samples: samples,
    "noise 15 dB below": CONDITIONS["noise 15 dB below"],
}
LATE_MS = 50
"""Speech whose first so many milliseconds are missing has lost something one can hear."""
WORDS = ("uh huh", "yeah", "no", "wait", "okay", "stop", "stop it", "wait a minute", "but what about")
SPEAKERS = ("flite/slt", "flite/rms", "flite/awb", "festival/ked", "espeak/en-us", "pico/en-US")
INTERRUPT_MS = (384, 448, 512)


@dataclass
class Stream:
    """Sound with one turn in it, and where the turn is, in milliseconds."""

    samples: Float32
    begins_ms: float
    goes_on_ms: float
    ends_ms: float
    pause_ms: int


def bounds_ms(samples: Float32) -> tuple[float, float]:
    """Where speech begins and ends."""
    hops = samples[: len(samples) // 160 * 160].reshape(-1, 160)
    energy = np.mean(hops**2, axis=1)
    loud = np.flatnonzero(energy > energy.max() * 10**-3.5)
    return 10.0 * loud[0], 10.0 * (loud[-1] + 1)


def streams(heard: Callable[[Float32], Float32]) -> Iterator[Stream]:
    """The same turns under every condition."""
    rng = random.Random("turns")
    by_voice = defaultdict(list)
    for item in load():
        if item.task in ("voices", "sentences") and item.recording is not None:
            by_voice[item.voice].append(read_audio(HELDOUT / item.recording))
    pairs = [(said[i], said[i + 1]) for said in by_voice.values() for i in range(0, len(said) - 1, 2)]
    rng.shuffle(pairs)
    for number, (first, second) in enumerate(pairs[: TURNS * len(PAUSES_MS)]):
        pause_ms = PAUSES_MS[number % len(PAUSES_MS)]
        (begins_ms, stops_ms), (goes_on_ms, ends_ms) = bounds_ms(first), bounds_ms(second)
        # The pause is that between the speech in the two, whatever silence the recordings have themselves.
        first, second = first[: int(stops_ms * 16)], second[int(goes_on_ms * 16) :]
        lead, gap, tail = silence(1500 + number % FRAME_MS), silence(pause_ms), silence(2500)
        second_ms = (len(lead) + len(first) + len(gap)) / 16
        samples = heard(np.concatenate([lead, first, gap, second, tail]))
        yield Stream(samples, len(lead) / 16 + begins_ms, second_ms, second_ms + ends_ms - goes_on_ms, pause_ms)


def silence(time_ms: int) -> Float32:
    """Nothing, for so long."""
    return np.zeros(time_ms * RATE_HZ // 1000, np.float32)


def frames(samples: Float32, activity: VoiceActivity) -> list[tuple[Float32, float]]:
    """Frames with their probabilities."""
    activity.reset()
    pieces = [samples[i : i + FRAME_SAMPLES] for i in range(0, len(samples) - FRAME_SAMPLES + 1, FRAME_SAMPLES)]
    return [(piece, activity.probability(piece)) for piece in pieces]


def turns_table(activity: VoiceActivity) -> None:
    """Turns cut in two, begun late, and how long until their end is noticed."""
    print(f"Turns of two sentences, {TURNS * len(PAUSES_MS)} for each line. Cut: the turn counted as over in its pause")
    cuts = "".join(f"{pause_ms:>8}" for pause_ms in PAUSES_MS)
    print(f"{'':27}{'cut at a pause of (ms)':>32} {'begun':>6} {'missed':>7} {'end noticed':>15} {'answer':>10} taken")
    print(f"{'heard':18} {'eagerness':8}{cuts} {'late':>6} {'':>7} {'p50   p95 (ms)':>15} {'begun (ms)':>10}  back")
    for name, heard in HEARD.items():
        prepared = [(stream, frames(stream.samples, activity)) for stream in streams(heard)]
        for eagerness in get_args(Eagerness):
            cut, late, missed, taken, ends, begun = defaultdict(int), 0, 0, 0, [], []
            for stream, sound in prepared:
                taking, given_ms, spoken, answered = TurnTaking(Patience.of(eagerness)), None, [], 0.0
                for index, (samples, probability) in enumerate(sound, 1):
                    now_ms = index * FRAME_MS
                    for action in taking.heard(samples, probability):
                        match action:
                            case Hear() if given_ms is None:
                                given_ms = now_ms - len(action.samples) / 16
                            case Answer():
                                answered = now_ms
                            case Speak():
                                spoken.append(now_ms)
                            case TakeBack():
                                taken += 1
                missed += not spoken
                late += given_ms is not None and given_ms > stream.begins_ms + LATE_MS
                cut[stream.pause_ms] += any(time_ms < stream.goes_on_ms for time_ms in spoken)
                ends += [spoken[-1] - stream.ends_ms] if spoken else []
                begun += [answered - stream.ends_ms]
            shares = "".join(f"{100 * cut[pause_ms] / TURNS:>6.0f} %" for pause_ms in PAUSES_MS)
            end = f"{np.median(ends):.0f}  {np.percentile(ends, 95):.0f}"
            counts = f"{late:>6} {missed:>7} {end:>15} {np.median(begun):>10.0f} {taken / len(prepared):>5.2f}"
            print(f"{name:18} {eagerness:8} {shares} {counts}")


def noise_table(activity: VoiceActivity) -> None:
    """What nobody said."""
    rng = np.random.default_rng(0)
    length = 20 * RATE_HZ
    spectrum = np.fft.rfft(rng.standard_normal(length)) / np.sqrt(np.maximum(1, np.arange(length // 2 + 1)))
    pink = np.fft.irfft(spectrum, length)
    seconds = np.arange(RATE_HZ) / RATE_HZ
    thump = np.sin(2 * np.pi * 90 * seconds) * np.exp(-seconds / 0.06)
    bursts = rng.standard_normal((20, RATE_HZ)) * np.exp(-seconds / 0.008)
    sounds = {
        "silence": np.zeros(length),
        "pink noise at −20 dB": 0.1 * pink / pink.std(),
        "white noise at −20 dB": 0.1 * rng.standard_normal(length),
        "20 doors, −10 dB": np.concatenate([0.15 * (thump + burst) for burst in bursts]),
        "20 doors, full scale": np.concatenate([0.5 * (thump + burst) for burst in bursts]).clip(-1, 1),
    }
    print("\n20 s of what nobody said")
    print(f"{'':24} {'highest probability':>20} {'turns begun':>12}")
    for name, samples in sounds.items():
        sound = frames(samples.astype(np.float32), activity)
        taking = TurnTaking(Patience.of("high"))
        actions = [action for piece, probability in sound for action in taking.heard(piece, probability)]
        print(f"{name:24} {max(p for _, p in sound):>20.3f} {sum(isinstance(a, Answer) for a in actions):>12}")


def words_table(activity: VoiceActivity) -> None:
    """Short words said while a reply plays."""
    print(f"\nSaid clearly and alone while a reply plays, by {len(SPEAKERS)} voices: how many interrupt")
    needed = "".join(f"{f'{time_ms} ms':>9}" for time_ms in INTERRUPT_MS)
    print(f"{'':16}{'voice heard (ms)':>17} {'if it takes':>12}{needed} {'silent after (ms)':>18}")
    for word in WORDS:
        interrupted, voiced, held = defaultdict(int), [], []
        for speaker in SPEAKERS:
            engine, _, key = speaker.partition("/")
            speech = speak(Voice(engine, key), word)  # type: ignore[arg-type]
            samples = from_array(speech.samples, speech.sample_rate_hz)
            begins_ms = 1000 + bounds_ms(samples)[0]
            level = np.float32(0.3 / np.abs(samples).max())
            sound = frames(np.concatenate([silence(1000), level * samples, silence(1500)]), activity)
            for time_ms in INTERRUPT_MS:
                taking = replying(replace(Patience.of("medium"), interrupt=Voiced(time_ms, 800)))
                for index, (piece, probability) in enumerate(sound, 1):
                    actions = taking.heard(piece, probability)
                    interrupted[time_ms] += Interrupt() in actions
                    held += [index * FRAME_MS - begins_ms] if Hold() in actions else []
            voiced.append(FRAME_MS * sum(probability >= 0.35 for _, probability in sound))
        counts = "".join(f"{f'{interrupted[time_ms]} of {len(SPEAKERS)}':>9}" for time_ms in INTERRUPT_MS)
        print(f"{word:16}{f'{min(voiced)} … {max(voiced)}':>17} {'':>12}{counts} {f'{max(held):.0f} at most':>18}")


def replying(patience: Patience) -> TurnTaking:
    """The state machine while a reply plays."""
    taking = TurnTaking(patience)
    for probability in [1.0] * 20 + [0.0] * 60:
        taking.heard(np.zeros(FRAME_SAMPLES, np.float32), probability)
    taking.reply_sounds()
    assert taking.state is State.SPEAKING
    return taking


def main() -> None:
    """Print the tables."""
    activity = VoiceActivity()
    turns_table(activity)
    noise_table(activity)
    words_table(activity)


if __name__ == "__main__":
    main()
