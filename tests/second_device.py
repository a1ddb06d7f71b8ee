"""A second device where there is none: ``cpu:1``, whose tensors are the CPU's, and which refuses to be mixed with it.

With it, code for a GPU is run without one, as far as it is about where tensors are: what CUDA refuses is refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

SECOND = torch.device("cpu", 1)

_aten = torch.ops.aten
_COPIES = (_aten.copy_.default, _aten._to_copy.default)
_INDEXED = (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default)
"""Their second argument are indices, which CUDA takes from the CPU as well."""


class OnSecond(Tensor):
    """A tensor that is on the second device, and the one with its numbers."""

    numbers: Tensor

    @staticmethod
    def __new__(cls: type[OnSecond], numbers: Tensor) -> OnSecond:
        made: OnSecond = Tensor._make_wrapper_subclass(
            cls, numbers.shape, numbers.stride(), numbers.storage_offset(), dtype=numbers.dtype, device=SECOND
        )
        return made

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers

    def tolist(self) -> Any:
        return self.numbers.tolist()

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # a class method, of which the library's annotations know nothing
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})


class SecondDevice(TorchDispatchMode):
    """Within it, the second device exists."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    there = any(isinstance(leaf, OnSecond) for leaf in tree_leaves((args, kwargs)))
    if there and func not in _COPIES:
        _refuse_mixture(func, (args[:1], args[2:]) if func in _INDEXED else (args, kwargs))
    if func is _aten.copy_.default:
        there = isinstance(args[0], OnSecond)
    elif kwargs.get("device") is not None:
        there = torch.device(kwargs["device"]) == SECOND
        kwargs = {**kwargs, "device": torch.device("cpu")}
    done = func(*tree_map_only(OnSecond, _numbers, args), **tree_map_only(OnSecond, _numbers, kwargs))
    if not there:
        return done
    return return_and_correct_aliasing(func, args, kwargs, tree_map_only(Tensor, OnSecond, done))


def _refuse_mixture(func: Any, arguments: Any) -> None:
    """A single number may come from the CPU, where each element is computed for itself."""
    single = torch.Tag.pointwise in func.tags
    for leaf in tree_leaves(arguments):
        if isinstance(leaf, Tensor) and not isinstance(leaf, OnSecond) and not (single and leaf.ndim == 0):
            raise RuntimeError(f"{func}: expected all tensors on the same device, one of {tuple(leaf.shape)} is not")


def _numbers(tensor: OnSecond) -> Tensor:
    return tensor.numbers
