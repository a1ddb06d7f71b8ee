"""What the Talker is trained on is what the reference's `generate` gives it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tolerances
import torch
from nearfield.nano.chat import Example, collate, hidden_states
from nearfield.nano.model import CODEC_BOS, CODEC_PAD, build
from nearfield.nano.read import message
from nearfield.nano.talker import Script, said_now, stage_directions, voice_tokens
from nearfield.nano.tokenizer import token_ids
from nearfield.runtime.messages import SYSTEM_PROMPT

REPLY_TOKENS, CODES = 4, 9


@pytest.fixture(scope="module")
def model() -> Any:
    model = build(seed=8)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # a reply that does not end at once, in the Thinker and in the Talker
        model.thinker.lm_head.weight[token_ids().im_end] = 0
        model.talker.codec_head.weight[1000:] = 0
    model.speaker_map = {
        "Ethan": {
            "bos_token": voice_tokens()[1],
            "cond": torch.zeros(1, 192),
            "ref_mel": torch.randn(1, 30, 80, generator=generator),
        }
    }
    return model


@pytest.fixture(scope="module")
def example() -> Example:
    return Example([message("system", SYSTEM_PROMPT), message("user", "What is two plus one?")], "placeholder")


def _generated(
    model: Any, example: Example, *, padded: bool
) -> tuple[list[int], list[int], torch.Tensor, torch.Tensor]:
    """The reference's reply tokens and codes, and all that its Talker was given: rows (L, 256) and positions (3, L)."""
    tokens = collate([example]).tokens[:, : int((collate([example]).labels != -100).int().argmax(1)[0]) + 1]
    pad = int(padded)
    ids = torch.nn.functional.pad(tokens, (pad, 0))
    mask = torch.ones_like(ids)
    mask[:, :pad] = 0
    inputs: list[torch.Tensor] = []
    positions: list[torch.Tensor] = []
    codes: list[int] = []

    def note(_: torch.nn.Module, __: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        inputs.append(keywords["inputs_embeds"][0])
        if keywords["position_ids"] is not None:
            positions.append(keywords["position_ids"][:, 0])

    hooks = [
        model.talker.model.register_forward_pre_hook(note, with_kwargs=True),
        model.token2wav.register_forward_pre_hook(lambda _, args: codes.extend(args[0][0].tolist())),
    ]
    try:
        sequences, _ = model.generate(
            input_ids=ids, attention_mask=mask, speaker="Ethan", thinker_max_new_tokens=REPLY_TOKENS,
            thinker_do_sample=False, talker_max_new_tokens=CODES, talker_do_sample=False,
        )  # fmt: skip
    finally:
        for hook in hooks:
            hook.remove()
    given = torch.cat(inputs)[pad:]
    places = torch.cat(positions, 1)[:, pad:] if positions else torch.arange(len(given)).expand(3, -1)
    return sequences[0, ids.shape[1] :].tolist(), codes, given, places


def _script(model: Any, example: Example, reply: list[int], codes: list[int], *, prefixed: bool) -> Script:
    """The same conversation as the training lays it out."""
    batch = collate([example])
    asked = int((batch.labels != -100).int().argmax(1)[0]) + 1
    tokens = torch.cat([batch.tokens[:, :asked], torch.tensor([reply[:-1]])], 1)  # the last token is never read
    labels = torch.full_like(tokens, -100)
    labels[0, asked - 1 :] = torch.tensor(reply)
    batch = type(batch)(tokens, torch.arange(tokens.shape[1]).expand(3, 1, -1), labels, [])
    language_model = model.thinker.model.language_model
    with torch.no_grad():
        embeddings = language_model.embed_tokens(tokens)
        rows = hidden_states(language_model, embeddings, batch.positions) + embeddings
    voices = torch.tensor([voice_tokens()[1]])
    read = [np.array(codes[:-1])]  # the last code is never read
    return stage_directions(
        rows, batch, voices, read, np.array([prefixed]), language_model.embed_tokens.weight.detach()
    )


@pytest.mark.parametrize("padded", [True, False])
@torch.no_grad()
def test_input_is_the_references(model: Any, example: Example, padded: bool) -> None:
    reply, codes, given, positions = _generated(model, example, padded=padded)
    assert len(reply) == REPLY_TOKENS and len(codes) == CODES
    script = _script(model, example, reply, codes, prefixed=padded)
    ours = script.inputs(model.talker)[0]
    assert tolerances.relative_error(ours, given) < tolerances.FP32_RELATIVE
    np.testing.assert_array_equal(script.positions[:, 0], positions)
    assert int(script.spoken.sum()) == CODES


def test_prefix_is_codec_pad_then_codec_bos(model: Any, example: Example) -> None:
    script = _script(model, example, [5, 6, 7], [9, 8, 7], prefixed=True)
    read = script.codes[script.codes >= 0].tolist()
    assert read == [CODEC_PAD, CODEC_BOS, 9, 8]


def test_guided_heads_are_led_through_the_reply_in_order(model: Any) -> None:
    example = Example(
        [message("system", SYSTEM_PROMPT), message("user", "Say four two nine.")], "You said four two nine."
    )
    batch = collate([example])
    language_model = model.thinker.model.language_model
    rows = language_model.embed_tokens(batch.tokens)
    codes = [np.arange(1, 101)]
    script = stage_directions(
        rows, batch, torch.tensor([voice_tokens()[0]]), codes, np.array([True]), language_model.embed_tokens.weight
    )
    window = said_now(batch, script)[0][script.spoken[0]]  # (101, L)
    first = int(script.spoken[0].int().argmax())
    assert window.shape[0] == 101 and bool((window.sum(1) > 0).all())
    assert bool((window[:, : first - 1] == 0).all())  # never at the prompt
    middles = (window * torch.arange(window.shape[1])).sum(1) / window.sum(1)
    assert bool((middles.diff() >= -1e-6).all()) and float(middles[-1] - middles[0]) > 3
