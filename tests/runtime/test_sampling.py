"""The sampler beside transformers' own processors, and its random stream."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nearfield.errors import InputError
from nearfield.runtime.sampling import GREEDY, TALKER_DEFAULT, Sampler, Sampling
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

VOCABULARY = 97

settings = st.builds(
    Sampling,
    temperature=st.floats(0.1, 3.0),
    top_k=st.sampled_from([0, 1, 5, 40, VOCABULARY, 200]),
    top_p=st.floats(0.05, 1.0),
    repetition_penalty=st.floats(0.5, 2.0),
    greedy=st.booleans(),
)
tokens = st.lists(st.integers(0, VOCABULARY - 1), max_size=12)


def reference_scores(
    logits: npt.NDArray[np.float32], sampling: Sampling, seen: list[int], suppressed: list[int]
) -> npt.NDArray[np.float32]:
    """What `generate` would choose from, put together as its `_get_logits_processor` does."""
    processors = LogitsProcessorList()
    if sampling.repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    processors.append(SuppressTokensLogitsProcessor(suppressed))
    if not sampling.greedy:
        if sampling.temperature != 1.0:
            processors.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k:
            processors.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1.0:
            processors.append(TopPLogitsWarper(sampling.top_p))
    scores: npt.NDArray[np.float32] = processors(
        torch.tensor([seen], dtype=torch.long), torch.from_numpy(logits.copy())
    ).numpy()[0]
    return scores


@given(settings, tokens, tokens, st.integers(0, 2**32 - 1))
def test_scores_are_those_of_the_reference(
    sampling: Sampling, seen: list[int], suppressed: list[int], seed: int
) -> None:
    logits = np.random.default_rng(seed).normal(0, 4, (1, VOCABULARY)).astype(np.float32)
    sampler = Sampler(sampling, VOCABULARY, np.random.default_rng(0), seen=seen, suppressed=suppressed)
    before = logits.copy()
    scores = sampler.process(logits)
    expected = reference_scores(logits, sampling, seen, suppressed)
    np.testing.assert_array_equal(np.isfinite(scores), np.isfinite(expected))
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    np.testing.assert_array_equal(logits, before, err_msg="the logits belong to the caller")


def test_draws_follow_the_distribution() -> None:
    sampling = Sampling(temperature=0.7, top_k=6, top_p=0.9)
    logits = np.random.default_rng(3).normal(0, 2, (1, VOCABULARY)).astype(np.float32)
    sampler = Sampler(sampling, VOCABULARY, np.random.default_rng(4))
    probabilities = torch.softmax(torch.from_numpy(reference_scores(logits, sampling, [], [0])), 0).numpy()
    draws = 20_000
    counts = np.bincount([sampler.choose(logits) for _ in range(draws)], minlength=VOCABULARY)
    deviation = np.sqrt(probabilities * (1 - probabilities) / draws)
    assert (np.abs(counts / draws - probabilities) <= 4 * deviation).all()
    assert counts[probabilities == 0].sum() == 0


def test_the_same_seed_draws_the_same_tokens_and_another_seed_others() -> None:
    logits = np.random.default_rng(3).normal(0, 1, (50, 1, VOCABULARY)).astype(np.float32)

    def drawn(seed: int) -> list[int]:
        sampler = Sampler(TALKER_DEFAULT, VOCABULARY, np.random.default_rng(seed))
        np.random.default_rng(99).random(1000)  # another stream in between changes nothing
        return [sampler.choose(row) for row in logits]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_chosen_tokens_are_penalized_from_then_on() -> None:
    logits = np.array([[2.0, 1.9, -1.0]], np.float32)
    greedy = dataclasses.replace(GREEDY, repetition_penalty=1.5)
    sampler = Sampler(greedy, 3, np.random.default_rng(0))
    assert [sampler.choose(logits) for _ in range(3)] == [0, 1, 0]


def test_suppressed_tokens_do_not_take_a_place_among_the_top_k() -> None:
    logits = np.arange(10, dtype=np.float32)[None]
    sampler = Sampler(Sampling(top_k=2), 10, np.random.default_rng(0), suppressed=[9, 8])
    assert np.flatnonzero(np.isfinite(sampler.process(logits))).tolist() == [6, 7]


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", 0.0), ("temperature", float("nan")), ("top_k", -1), ("top_p", 0.0), ("top_p", 1.1),
     ("repetition_penalty", 0.0)],
)  # fmt: skip
def test_settings_out_of_range_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"sampling: {name} is {value}; expected a number"):
        Sampling(**{name: value})  # type: ignore[arg-type]  # each field is tried with a number
