"""The reference beside which nano's bundle is scored: the same replies as the runtime's where nothing is quantized."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from nearfield.export.export import ExportOptions, export_bundle
from nearfield.nano.evaluate import Judge
from nearfield.nano.questions import Item, Turn, messages
from nearfield.nano.reference import Reference
from nearfield.runtime.audio import SAMPLE_RATE_HZ
from nearfield.runtime.events import TurnEnd
from nearfield.runtime.omni import Omni

# The reference's processor hands torch tensors to NumPy the way NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

MAX_TOKENS = 12
ITEMS = [
    Item("typed", "sums", "7 + 4", ""),
    Item("again", "again", "Say that again.", "", recording="0.ogg", history=(Turn("Hi.", "Hello."),)),
    Item("picture", "picture", "What is this?", "", recording="0.ogg", seed=1),
    Item("video", "video", "Where does it go?", "", seed=1),
]


@pytest.fixture(scope="module")
def omni(checkpoint_3b: Path, tmp_path_factory: pytest.TempPathFactory) -> Omni:
    bundle = tmp_path_factory.mktemp("reference") / "bundle"
    export_bundle(checkpoint_3b, bundle, ExportOptions(bits=32))
    return Omni.load(bundle, threads=1)


@pytest.fixture(scope="module")
def reference(checkpoint_3b: Path) -> Reference:
    return Reference(checkpoint_3b)


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item.task)
def test_the_reference_answers_what_the_runtime_answers(
    omni: Omni, reference: Reference, item: Item, tmp_path: Path
) -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(20_000)
    soundfile.write(tmp_path / "0.ogg", noise, SAMPLE_RATE_HZ, format="OGG", subtype="OPUS")
    asked = messages(item, tmp_path)
    *_, end = omni.respond(asked, speak=False, max_tokens=MAX_TOKENS)
    assert isinstance(end, TurnEnd)
    assert end.text
    assert reference.answer(asked, MAX_TOKENS) == end.text


def test_the_judge_counts_it(reference: Reference) -> None:
    expected = reference.answer(messages(ITEMS[0]), MAX_TOKENS).strip()
    item = Item("typed", "sums", ITEMS[0].prompt, expected)
    judge = Judge(lambda _: "something else")
    assert judge.score([item], reference=lambda asked: reference.answer(asked, MAX_TOKENS)).reference_right == 1
