"""Choosing the next token: greedy, or drawn from the distribution the model's reference would draw from.

Inputs: logits `float32 (1, V)` → output: a token id. The steps and their order are those of `generate` in transformers:
repetition penalty, suppressed tokens, temperature, top-k, top-p.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import InputError

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. Raises `InputError` for a setting out of its range."""

    temperature: float = 1.0
    top_k: int = 0
    """Only the k most likely tokens are kept; 0 keeps all."""
    top_p: float = 1.0
    """The most likely tokens are kept until they hold this probability together (Holtzman et al., 1904.09751)."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens seen before (Keskar et al., 1909.05858)."""
    greedy: bool = False
    """Take the most likely token; temperature, top-k and top-p are left out, the penalty is not."""

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, self.temperature > 0, "above 0 (for the likeliest token, greedy=True)")
        _check("top_k", self.top_k, self.top_k >= 0, "0 (all tokens) or more")
        _check("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1")
        _check("repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0, "above 0 (1 is none)")


def _check(name: str, value: float, valid: bool, expected: str) -> None:
    if not valid:
        raise InputError(f"sampling: {name} is {value}; expected a number {expected}")


GREEDY = Sampling(greedy=True)
"""The likeliest token each time: the reference's default for the Thinker."""

TALKER_DEFAULT = Sampling(temperature=0.9, top_k=40, top_p=0.8, repetition_penalty=1.05)
"""The reference's default for the Talker."""


class Sampler:
    """Draws the tokens of one sequence: knows which were seen, and has its own stream of random numbers."""

    def __init__(
        self,
        settings: Sampling,
        vocab_size: int,
        generator: np.random.Generator,
        *,
        seen: Iterable[int] = (),
        suppressed: Iterable[int] = (),
    ) -> None:
        """`seen`: tokens of the prompt, which the repetition penalty counts. `suppressed`: tokens never chosen."""
        self.settings = settings
        self._generator = generator
        self._seen = np.zeros(vocab_size, bool)
        self._seen[list(seen)] = True
        self._suppressed = np.zeros(vocab_size, bool)
        self._suppressed[list(suppressed)] = True

    def choose(self, logits: Float32) -> int:
        """Choose the next token from `logits (1, V)` and remember it as seen."""
        scores = self.process(logits)
        token = int(np.argmax(scores)) if self.settings.greedy else self._draw(scores)
        self._seen[token] = True
        return token

    def process(self, logits: Float32) -> Float32:
        """Return the scores `(V,)` a token is chosen by: −∞ for those that cannot be."""
        settings = self.settings
        scores: Float32 = logits[0].astype(np.float32)  # (V,), a copy
        if settings.repetition_penalty != 1.0:
            penalty = np.float32(settings.repetition_penalty)
            seen = scores[self._seen]
            scores[self._seen] = np.where(seen < 0, seen * penalty, seen / penalty)
        scores[self._suppressed] = -np.inf
        if settings.greedy:
            return scores
        scores /= np.float32(settings.temperature)
        if 0 < settings.top_k < scores.size:
            scores[scores < np.partition(scores, -settings.top_k)[-settings.top_k]] = -np.inf
        if settings.top_p < 1.0:
            _keep_top_p(scores, settings.top_p)
        return scores

    def _draw(self, scores: Float32) -> int:
        """One token by its probability, from one random number."""
        kept = np.flatnonzero(np.isfinite(scores))
        cumulative = np.cumsum(_softmax(scores[kept]))
        index = np.searchsorted(cumulative, self._generator.random() * cumulative[-1], side="right")
        return int(kept[min(int(index), kept.size - 1)])


def _keep_top_p(scores: Float32, top_p: float) -> None:
    """Set to −∞ in place what lies outside the smallest set of likeliest tokens that holds `top_p`."""
    kept = np.flatnonzero(np.isfinite(scores))
    ascending = kept[np.argsort(scores[kept], kind="stable")]
    below = np.cumsum(_softmax(scores[ascending])) <= 1.0 - top_p
    below[-1] = False  # the likeliest token always stays
    scores[ascending[below]] = -np.inf


def _softmax(scores: Float32) -> npt.NDArray[np.float64]:
    """Probabilities, in double precision: they are about to be summed."""
    exponentials = np.exp(scores.astype(np.float64) - np.max(scores))
    return np.asarray(exponentials / exponentials.sum(), np.float64)
