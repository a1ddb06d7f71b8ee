import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from nearfield.errors import NearfieldError
from nearfield.nano.training import Losses, Plan, Pools, blend, finished, train
from torch import Tensor, nn

PLAN = Plan("line", steps=60, learning_rate=0.1, warmup_steps=5, ema=0.9)
SHARED = replace(PLAN, shares=2)
ROOT = Path(__file__).parents[2]


class Interrupted(Exception):
    pass


def fresh() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(1, 1)


def loss_of(line: nn.Linear, stop_at: int | None = None) -> Callable[[int, np.random.Generator], Losses]:
    def loss(step: int, rng: np.random.Generator) -> Losses:
        if step == stop_at:
            raise Interrupted
        x = torch.from_numpy(rng.normal(size=(8, 1)).astype(np.float32))
        return {"loss": (line(x) - (3 * x + 1)).square().mean()}

    return loss


def weights(line: nn.Linear) -> list[Tensor]:
    return [value.clone() for value in line.state_dict().values()]


def test_a_stage_learns_and_leaves_its_weights_and_its_curve(tmp_path: Path) -> None:
    line = fresh()
    train(PLAN, line, loss_of(line), tmp_path)
    assert line.weight.item() == pytest.approx(3, abs=0.2)
    assert torch.equal(finished("line", tmp_path)["weight"], line.weight)
    curve = (tmp_path / "line.csv").read_text(encoding="utf-8").splitlines()
    assert curve[0] == "step,seconds,loss"
    assert len(curve) == 1 + PLAN.steps // 10


def test_a_blend_is_the_mean_of_what_stages_ended_with(tmp_path: Path) -> None:
    plans = [replace(PLAN, name=name, steps=steps) for name, steps in (("short", 10), ("long", 60))]
    ends = []
    for plan in plans:
        line = fresh()
        train(plan, line, loss_of(line), tmp_path)
        ends.append(weights(line))
    blend("both", plans, line, tmp_path)
    mean = [(first + second) / 2 for first, second in zip(*ends, strict=True)]
    assert not torch.equal(ends[0][0], ends[1][0])
    for values in (weights(line), list(finished("both", tmp_path).values())):
        torch.testing.assert_close(values, mean)
    other = nn.Linear(1, 1)
    (tmp_path / "short.pt").unlink()
    blend("both", plans, other, tmp_path)  # is finished: what it was made of is not asked for
    torch.testing.assert_close(weights(other), mean)


def test_a_blend_names_the_stage_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(NearfieldError, match="stage line is not finished"):
        blend("both", [PLAN], fresh(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_stage_ends_as_an_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nearfield.nano.training._SAVE_EVERY_S", 0.0)  # a state at every step
    whole, halved = fresh(), fresh()
    train(PLAN, whole, loss_of(whole), tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(PLAN, halved, loss_of(halved, stop_at=31), tmp_path / "halved")
    other = nn.Linear(1, 1)  # the state alone decides where it goes on
    train(PLAN, other, loss_of(other), tmp_path / "halved")
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(other), strict=True))


def test_a_run_begun_on_a_gpu_goes_on_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nearfield.nano.training._SAVE_EVERY_S", 0.0)  # a state at every step
    whole, halved, other = fresh(), fresh(), nn.Linear(1, 1)
    train(PLAN, whole, loss_of(whole), tmp_path / "whole")
    with monkeypatch.context() as saving, pytest.raises(Interrupted):
        saving.setattr(torch.serialization, "location_tag", lambda _: "cuda:0")  # where the state says it was
        train(PLAN, halved, loss_of(halved, stop_at=31), tmp_path / "halved")
    train(PLAN, other, loss_of(other), tmp_path / "halved")
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(other), strict=True))


TOGETHER = """
import sys
from pathlib import Path
from nearfield.nano.training import train
from tests.nano.test_training import SHARED, fresh, loss_of
line = fresh()
train(SHARED, line, loss_of(line), Path(sys.argv[1]))
print(line.weight.item())
"""


def test_two_processes_end_as_one_does(tmp_path: Path) -> None:
    alone = fresh()
    train(SHARED, alone, loss_of(alone), tmp_path / "alone")
    script = tmp_path / "together.py"
    script.write_text(TOGETHER, encoding="utf-8")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [*torchrun, str(script), str(tmp_path / "both")], env=environment, capture_output=True, text=True, check=True
    )
    assert [float(line) for line in ended.stdout.split()] == [alone.weight.item()] * 2, "all copies stay equal"
    assert torch.equal(finished("line", tmp_path / "both")["weight"], alone.weight)
    curves = [(tmp_path / run / "line.csv").read_text(encoding="utf-8").splitlines() for run in ("alone", "both")]
    assert [row.split(",")[2] for row in curves[0]] == [row.split(",")[2] for row in curves[1]]


def test_shares_that_cannot_be_dealt_evenly_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    line = fresh()
    with pytest.raises(NearfieldError, match="line has 1 shares a step: 2 processes cannot deal them"):
        train(PLAN, line, loss_of(line), tmp_path)


def test_a_finished_stage_is_loaded_and_not_done_again(tmp_path: Path) -> None:
    line, again = fresh(), nn.Linear(1, 1)
    train(PLAN, line, loss_of(line), tmp_path)
    train(PLAN, again, loss_of(again, stop_at=0), tmp_path)
    assert torch.equal(line.weight, again.weight)


def test_an_unfinished_stage_is_refused_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(NearfieldError, match=r"python -m nearfield\.nano line"):
        finished("line", tmp_path)


def test_a_loss_that_is_not_finite_stops_the_stage(tmp_path: Path) -> None:
    line = fresh()
    with pytest.raises(NearfieldError, match="loss is nan at step 0"):
        train(PLAN, line, lambda *_: {"loss": line.weight.sum() * torch.nan}, tmp_path)


def test_frozen_parameters_stay_and_are_saved(tmp_path: Path) -> None:
    line = fresh()
    line.bias.requires_grad_(False)
    before = line.bias.clone()
    train(PLAN, line, loss_of(line), tmp_path)
    assert torch.equal(finished("line", tmp_path)["bias"], before)


def test_the_rate_rises_then_falls() -> None:
    rates = [PLAN.rate(step) for step in range(PLAN.steps)]
    assert rates[0] == pytest.approx(0.02)
    assert max(rates) == pytest.approx(0.1)
    assert rates[-1] < 0.01


def test_the_batches_of_a_pool_hold_what_was_drawn_once_and_each_is_of_like_length() -> None:
    pools = Pools(lambda rng: "x" * rng.randrange(100), len, batch=4, batches=3)
    rng = random.Random(1)  # of the second pool
    drawn = ["x" * rng.randrange(100) for _ in range(12)]
    batches = [pools.batch(step) for step in (3, 4, 5)]
    assert sorted(each for batch in batches for each in batch) == sorted(drawn)
    shortest_first = sorted(batches, key=lambda batch: len(batch[0]))
    assert [each for batch in shortest_first for each in batch] == sorted(drawn, key=len)
    assert pools.batch(4) == batches[1]
