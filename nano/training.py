"""The loop every training stage shares: AdamW under a cosine, averaged weights, a curve on disk, and resuming.

Inputs: a :class:`Plan`, a module, a function from (number of the batch, generator) to losses → outputs: the trained
module, ``build/states/<name>.pt`` and ``<name>.csv``. A run stopped at any moment goes on from its last state and sees
the batches an uninterrupted run would have seen, since a generator depends on the seed and the step alone.

A plan may draw a step's batch in shares. ``torchrun`` can then give each to a process of its own; one process does them
one after another, with the same result.

Everything is built and drawn on the CPU, so it is the same with a GPU as without: a stage moves its module to `device`
before training, and its loss what it drew to where the module is. A stage may begin on one device and end on another.
"""

from __future__ import annotations

import csv
import math
import os
import random
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, distributed, nn
from tqdm import tqdm

from ..errors import NearfieldError

BUILD = Path(__file__).parent / "build"
"""Everything that can be made again: speech, training states, logs."""
STATES = BUILD / "states"
CHECKPOINT = Path(__file__).parent / "checkpoint"

_SAVE_EVERY_S = 120.0
_CURVE_EVERY_STEPS = 10
_FINAL_RATE = 0.03  # of the peak learning rate, at the end of the cosine

T = TypeVar("T")

Losses = Mapping[str, Tensor]
"""``loss`` is minimised; the others are only recorded."""


def device() -> torch.device:
    """Where stages are trained: on the GPU, if there is one."""
    return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


def device_of(module: nn.Module) -> torch.device:
    """Where a module is, and what it is given has to be."""
    return next(module.parameters()).device


def precision(module: nn.Module) -> torch.autocast:
    """Within this context ``module`` computes in bfloat16 what does not need float32."""
    return torch.autocast(device_of(module).type, torch.bfloat16)


class Pools(Generic[T]):
    """Batches of things about as long as each other, so that little of a batch is padding.

    What several steps will see is drawn together and sorted by length; `generator` gives each such pool its own.
    """

    def __init__(
        self,
        draw: Callable[[random.Random], T],
        length: Callable[[T], int],
        batch: int,
        batches: int,
        generator: Callable[[int], random.Random] = random.Random,
    ) -> None:
        self._draw, self._length, self._batch, self._batches = draw, length, batch, batches
        self._generator = generator
        self._pool: tuple[int, list[list[T]]] = (-1, [])

    def batch(self, step: int) -> list[T]:
        """The batch of a step."""
        pool, place = divmod(step, self._batches)
        if self._pool[0] != pool:
            self._pool = pool, self._drawn(self._generator(pool))
        order = np.random.default_rng(pool).permutation(self._batches)
        return self._pool[1][order[place]]

    def _drawn(self, rng: random.Random) -> list[list[T]]:
        drawn = sorted((self._draw(rng) for _ in range(self._batch * self._batches)), key=self._length)
        return [drawn[start : start + self._batch] for start in range(0, len(drawn), self._batch)]


@dataclass(frozen=True)
class Plan:
    """How a stage is trained. ``ema``: decay of the averaged weights the stage ends with, or None for the last ones.

    ``shares``: in how many batches, each with its own generator, a step is drawn.
    """

    name: str
    steps: int
    learning_rate: float
    warmup_steps: int = 100
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    ema: float | None = None
    clip: float = 1.0
    seed: int = 0
    shares: int = 1

    def rate(self, step: int) -> float:
        """Learning rate at ``step``: linear warm-up, then a cosine down to 3 % of the peak."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.learning_rate * (_FINAL_RATE + (1 - _FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * progress)))


def train(
    plan: Plan,
    module: nn.Module,
    loss: Callable[[int, np.random.Generator], Losses],
    folder: Path = STATES,
) -> None:
    """Train ``module`` in place; at the end it holds the averaged weights if the plan asks for them.

    A stage that is already finished only loads its weights. Parameters that need no gradient are left alone, but are
    part of the saved state. Raises `NearfieldError` when a loss stops being finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state_file, curve_file = folder / f"{plan.name}.pt", folder / f"{plan.name}.csv"
    optimizer = _optimizer(plan, module)
    average = None if plan.ema is None else {k: v.detach().clone() for k, v in module.state_dict().items()}
    step, seconds = 0, 0.0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True, map_location=device_of(module))
        module.load_state_dict(state["module"])
        if state["finished"]:
            return
        optimizer.load_state_dict(state["optimizer"])
        average, step, seconds = state["average"], state["step"], state["seconds"]
    else:
        curve_file.unlink(missing_ok=True)

    module.train()
    team = Team.of(plan)
    started = saved = time.monotonic()
    with tqdm(
        total=plan.steps, initial=step, desc=plan.name, unit="step", mininterval=10, disable=not team.leads
    ) as bar:
        while step < plan.steps:
            for group in optimizer.param_groups:
                group["lr"] = plan.rate(step)
            losses = team.backward(plan, module, loss, step)
            if not math.isfinite(losses["loss"]):
                raise NearfieldError(f"stage {plan.name}: the loss is {losses['loss']} at step {step}")
            torch.nn.utils.clip_grad_norm_(module.parameters(), plan.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            if average is not None and plan.ema is not None:
                _follow(average, module, min(plan.ema, step / (step + 10)))
            bar.update()
            if step % _CURVE_EVERY_STEPS == 0 and team.leads:
                _append(curve_file, {"step": step, "seconds": round(seconds + time.monotonic() - started, 1), **losses})
                bar.set_postfix({key: f"{value:.3f}" for key, value in losses.items()}, refresh=False)
            if time.monotonic() - saved > _SAVE_EVERY_S and team.leads:
                _save(state_file, module, optimizer, average, step, seconds + time.monotonic() - started)
                saved = time.monotonic()
    if average is not None:
        module.load_state_dict(average)
    module.eval()
    if team.leads:
        _save(state_file, module, None, None, step, seconds + time.monotonic() - started)


@dataclass(frozen=True)
class Team:
    """The processes that train one module together, each with its own copy of it; usually there is one.

    They add up what they found after every step, so that all copies stay equal. The first alone writes anything.
    """

    rank: int
    size: int

    @classmethod
    def of(cls, plan: Plan) -> Team:
        """The team ``torchrun`` started, or this process. Raises `NearfieldError` for shares that cannot be dealt."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if plan.shares % size:
            raise NearfieldError(
                f"stage {plan.name} has {plan.shares} shares a step: {size} processes cannot deal them"
            )
        if size > 1 and not distributed.is_initialized():
            distributed.init_process_group("gloo")
        return cls(int(os.environ.get("RANK", "0")), size)

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def backward(
        self, plan: Plan, module: nn.Module, loss: Callable[[int, np.random.Generator], Losses], step: int
    ) -> dict[str, float]:
        """Leave in ``module`` the gradients of a step, the mean over its shares; returns the mean losses."""
        values: dict[str, Tensor] = {}
        for share in range(self.rank, plan.shares, self.size):
            losses = loss(step * plan.shares + share, np.random.default_rng((plan.seed, step, share)))
            (losses["loss"] / plan.shares).backward()
            for key, value in losses.items():
                values[key] = values.get(key, torch.zeros(())) + value.detach() / plan.shares
        if self.size > 1:
            gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
            _add_up([*gradients, *values.values()])
        return {key: value.item() for key, value in values.items()}


def _add_up(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over all processes, in one message."""
    together = torch.cat([tensor.detach().flatten().float() for tensor in tensors])
    distributed.all_reduce(together)
    for tensor, summed in zip(tensors, together.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(summed.view_as(tensor))


def quicken(layers: Iterable[nn.Module]) -> None:
    """Compile each layer, for batches of any size: a step takes little more than half its time on a CPU.

    On a GPU, or without a C++ compiler, which `torch.compile` calls, nothing changes.
    """
    if device().type == "cpu" and shutil.which(os.environ.get("CXX", "g++")):
        for layer in layers:
            layer.compile(dynamic=True)


def blend(name: str, plans: Sequence[Plan], module: nn.Module, folder: Path = STATES) -> None:
    """Finish the stage ``name`` with the mean of the weights with which others on one path of training ended.

    Ends of one path lie in one basin, and their mean is often better than each: Izmailov et al. 2018, arXiv:1803.05407;
    Wortsman et al. 2022, arXiv:2203.05482. ``module`` holds it afterwards. One that is finished is only loaded.
    """
    state_file = folder / f"{name}.pt"
    if state_file.exists():
        module.load_state_dict(finished(name, folder))
        return
    ends = [finished(plan.name, folder) for plan in plans]
    module.load_state_dict({key: torch.stack([end[key] for end in ends]).mean(0) for key in ends[0]})
    if os.environ.get("RANK", "0") == "0":
        _save(state_file, module, None, None, sum(plan.steps for plan in plans), 0.0)


def finished(name: str, folder: Path = STATES) -> dict[str, Tensor]:
    """On the CPU, the weights a finished stage ended with. Raises `NearfieldError` naming the command for them."""
    state_file = folder / f"{name}.pt"
    state: dict[str, Any] = {"finished": False}
    if state_file.exists():
        state = torch.load(state_file, weights_only=True, map_location="cpu")
    if not state["finished"]:
        raise NearfieldError(f"stage {name} is not finished: run `python -m nearfield.nano {name}` first")
    weights: dict[str, Tensor] = state["module"]
    return weights


def _optimizer(plan: Plan, module: nn.Module) -> torch.optim.AdamW:
    """AdamW; norms, biases and other vectors are not decayed."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": plan.weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=plan.learning_rate, betas=plan.betas, fused=True)


@torch.no_grad()
def _follow(average: dict[str, Tensor], module: nn.Module, decay: float) -> None:
    for key, value in module.state_dict().items():
        if value.is_floating_point():
            average[key].lerp_(value, 1 - decay)
        else:
            average[key].copy_(value)


def _append(curve_file: Path, row: Mapping[str, float]) -> None:
    new = not curve_file.exists()
    with curve_file.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, row)
        if new:
            writer.writeheader()
        writer.writerow(row)


def _save(
    state_file: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    average: dict[str, Tensor] | None,
    step: int,
    seconds: float,
) -> None:
    """Whole or not at all: a run stopped while saving keeps the state before."""
    state = {
        "module": module.state_dict(),
        "optimizer": None if optimizer is None else optimizer.state_dict(),
        "average": average,
        "step": step,
        "seconds": seconds,
        "finished": optimizer is None,
    }
    temporary = state_file.with_suffix(".part")
    torch.save(state, temporary)
    temporary.replace(state_file)
