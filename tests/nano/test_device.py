"""A step of every stage on a device that is not the CPU: a GPU, or what stands in for one where there is none."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nearfield.nano import dit, hear, read, reason, see, talker, training, understand, vocoder
from nearfield.nano.codec import Codec, Utterance
from nearfield.nano.lines import Line
from nearfield.nano.model import build
from nearfield.nano.recordings import Entry, Recordings
from nearfield.nano.sentences import plain
from nearfield.nano.training import Losses, Plan
from nearfield.nano.world import Exchange, Skill, draw
from second_device import SECOND, SecondDevice
from torch import Tensor, nn

_REASON = {"heard": 3, "typed": 2, "sums": 4}
SMALL = {
    (read, "_BATCH"): 3, (reason, "_FIRST_BATCH"): _REASON, (reason, "_SECOND_BATCH"): _REASON,
    (understand, "_SUMS"): 4, (hear, "_BATCH"): 4, (see, "_SMALL_BATCH"): (2, 2), (see, "_SECOND_BATCH"): (2, 1),
    (understand, "LESSONS"): understand.Mixture(typed=1, spoken=2, pictures=1, clips_every=1),
    (understand, "DRILL"): understand.Mixture(1, 3, 1, clips_every=2, named=2, hard=0.5, asked=0.5),
    (understand, "REST"): understand.Mixture(1, 2, 1, clips_every=2),
    (understand, "ANSWERS"): understand.Mixture(1, 2, 1, clips_every=2, hard=0.5, close=True),
    (talker, "_BATCH"): 4, (vocoder, "_BATCH"): 1, (dit, "BATCH_FRAMES"): 400,
}  # fmt: skip
SKILLS: tuple[Skill, ...] = ("sums", "digits", "talk", "again", "picture", "video", "refusal")


class Stepped(Exception):
    """A step was made of the last part of a stage: enough."""


@pytest.fixture(scope="module")
def model() -> Any:
    return build()


@pytest.fixture(scope="module")
def exchanges() -> list[Exchange]:
    rng = random.Random(3)
    return [draw(skill, rng, "train") for skill in SKILLS]


@pytest.fixture
def where() -> Iterator[torch.device]:
    """The GPU of this machine; where there is none, the second device."""
    if torch.cuda.is_available():
        yield torch.device("cuda:0")
        return
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # the second device's are of a class of their own
    with SecondDevice():  # type: ignore[no-untyped-call]
        yield SECOND
    torch.__future__.set_overwrite_module_params_on_conversion(False)


@pytest.fixture(scope="module")
def weights(model: Any) -> dict[str, dict[str, Tensor]]:
    """Of every stage that others build on, the weights before any training."""
    thinker = model.thinker.model
    ear = hear.Ear(thinker.language_model.embed_tokens.weight.detach())
    mind = {"language_model": thinker.language_model, "ear": ear, "visual": thinker.visual}
    return {
        **dict.fromkeys(("text", "reason"), thinker.language_model.state_dict()),
        "hear": ear.state_dict(),
        "see": thinker.visual.state_dict(),
        "talker": model.talker.state_dict(),
        "understand": {f"{part}.{key}": value for part in mind for key, value in mind[part].state_dict().items()},
    }


@pytest.fixture
def stages(
    where: torch.device,
    model: Any,
    weights: dict[str, dict[str, Tensor]],
    exchanges: list[Exchange],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Every stage with small batches, drawn from next to nothing."""
    replacements = {
        "build": lambda _seed=0: copy.deepcopy(model),
        "finished": weights.__getitem__,
        "device": lambda: where,
        "quicken": lambda _: None,
        "train": one_step(where, tmp_path),
        "train_codec": lambda: Codec(torch.randn(1024, 160, generator=torch.Generator().manual_seed(1))),
        "speech": lambda: [Utterance(speaker, "", noise(50_400)) for speaker in (0, 1)],
        "lines": lambda: spoken_lines(exchanges),
        "STATES": tmp_path,
    }
    for module in (dit, hear, read, reason, see, talker, understand, vocoder):
        for name in replacements.keys() & vars(module).keys():
            monkeypatch.setattr(module, name, replacements[name])
    for (module, name), value in SMALL.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(Recordings, "load", lambda _: recordings(exchanges))
    monkeypatch.setattr(training, "_save", lambda *_: None)


def one_step(where: torch.device, folder: Path) -> Callable[[Plan, nn.Module, Callable[..., Losses]], None]:
    def train(plan: Plan, module: nn.Module, loss: Callable[..., Losses]) -> None:
        def checked(step: int, rng: np.random.Generator) -> Losses:
            losses = loss(step, rng)
            assert {value.device for value in losses.values()} == {where}
            return losses

        training.train(replace(plan, steps=1), module, checked, folder)
        if not plan.name.endswith(("-first", "-second", "-third", "-fourth", "-fifth", "-sixth")):
            raise Stepped

    return train


def noise(count: int) -> np.ndarray[Any, np.dtype[np.int16]]:
    return np.random.default_rng(count).integers(-9000, 9000, count).astype(np.int16)


def recordings(exchanges: list[Exchange]) -> Recordings:
    """Each exchange twice, with and without the times of its words: a second of noise."""
    entries = []
    for it in exchanges:
        said = plain(it.prompt).split()
        words = [(word, index / len(said), (index + 1) / len(said)) for index, word in enumerate(said)]
        entries += [Entry("", it.skill, it.prompt, it.reply, 0, 16_000, timed) for timed in (words, None)]
    return Recordings([(entries, noise(16_000))])


def spoken_lines(exchanges: list[Exchange]) -> list[Line]:
    codes = np.arange(1, 60)
    said = [Line(it.skill, (it.prompt,), it.reply, (codes, codes)) for it in exchanges]
    return [*said, Line("transcript", (exchanges[0].prompt,), exchanges[0].prompt, (codes, codes))]


@pytest.mark.usefixtures("stages")
@pytest.mark.parametrize(
    "stage",
    [
        read.text_stage,
        reason.reason_stage,
        hear.hear_stage,
        see.see_stage,
        understand.understand_stage,
        talker.talker_stage,
        talker.talker_final_stage,
        vocoder.vocoder_stage,
        dit.dit_stage,
    ],
)
def test_a_step_stays_where_the_module_is(stage: Callable[[], object]) -> None:
    with pytest.raises(Stepped):
        stage()


def test_pictures_are_judged_where_the_tower_is(model: Any, where: torch.device) -> None:
    visual = copy.deepcopy(model.thinker.model.visual).to(where)
    loss = see.SeeLoss(visual, model.thinker.model.language_model.embed_tokens.weight)
    rng = np.random.default_rng(0)
    assert len(loss.right([see.picture(rng), see.moment(rng, small=True, easy=True)])) == 2


def test_a_mixture_of_devices_is_refused(where: torch.device) -> None:
    here, there = torch.ones(2), torch.ones(2, device=where)
    with pytest.raises(RuntimeError, match="same device"):
        here + there
    assert (there[torch.tensor([1])] * torch.tensor(2.0)).item() == 2.0
