"""`nearfield talk` as people start it, on virtual devices: questions are spoken, the answers are understood."""

from __future__ import annotations

import shutil
import subprocess
import time

import numpy as np
import psutil
import pytest
from audio_rig import RATE_HZ, AudioRig
from nearfield.apps.cli.common import DEMO_BUNDLE
from nearfield.nano.questions import HELDOUT, load
from nearfield.nano.recogniser import Recogniser, word_errors, words
from talk_process import talking

DEMO = DEMO_BUNDLE.parent
ASKED = (
    ("question-1.flac", "Seven plus four is eleven."),
    ("question-2.flac", "Seven plus four is eleven."),  # say that again
    ("question-1.flac", "Seven plus four is eleven."),
)
UNDERSTOOD = 0.6
"""Share of the words. Speech is drawn, and one draw may go wrong; `make nano-eval` has the exact share."""


@pytest.mark.parametrize("voice", ["Chelsie", "Ethan"])
def test_three_spoken_questions_are_answered_aloud(rig: AudioRig, voice: str) -> None:
    recogniser = Recogniser()
    errors = total = 0
    with rig.room_noise(-60.0), talking(rig, "--no-store", "--voice", voice) as lines:
        time.sleep(1.0)
        for recording, reply in ASKED:
            since, start = len(lines.seen), rig.speaker.count
            rig.say(DEMO / recording).wait()
            assert lines.wait("nano: ", since) == f"nano: {reply}"
            assert "waiting for silence" in lines.wait("^timing: ", since)
            time.sleep(0.5)
            spoken = rig.speaker.samples(start)
            audible = np.flatnonzero(np.abs(spoken) > 0.01)
            heard = recogniser.hear(spoken[audible[0] : audible[-1]], RATE_HZ)
            errors += word_errors(words(reply), heard)
            total += len(words(reply))
        assert not network_sockets(lines.pid)
    assert 1 - errors / total >= UNDERSTOOD


def network_sockets(pid: int) -> list[object]:
    """What a process and those it started have open to any network, this machine's own included."""
    process = psutil.Process(pid)
    return [socket for each in (process, *process.children(recursive=True)) for socket in each.net_connections("inet")]


def test_it_talks_with_the_network_cut_off(rig: AudioRig) -> None:
    cut_off = ["unshare", "--map-root-user", "--net"]
    if shutil.which("unshare") is None or subprocess.run([*cut_off, "true"], capture_output=True).returncode:
        pytest.skip("no right to a network namespace")
    with rig.room_noise(-60.0), talking(rig, "--no-store", within=cut_off) as lines:
        time.sleep(1.0)
        rig.say(DEMO / "question-1.flac").wait()
        assert lines.wait("nano: ", 0) == "nano: Seven plus four is eleven."
        lines.wait("^timing: ", 0)


def test_who_speaks_while_it_speaks_is_heard(rig: AudioRig) -> None:
    longest = max((item for item in load() if item.task == "sentences"), key=lambda item: len(item.reply))
    assert longest.recording is not None
    with rig.room_noise(-60.0), talking(rig, "--no-store") as lines:
        time.sleep(1.0)
        rig.say(HELDOUT / longest.recording).wait()
        lines.wait("state: speaking", 0)
        since = len(lines.seen)  # at once: the reply takes two seconds, an interruption counts after half a second
        rig.say(DEMO / "question-1.flac").wait()
        assert "(interrupted)" in lines.wait("^nano: ", since)
        lines.wait(r"^nano: .*\.$", since)  # to what was said then
