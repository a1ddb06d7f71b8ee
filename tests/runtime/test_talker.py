"""The Talker beside the reference's `talker.generate`, and its order of rows, stops and limits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import nearfield.runtime.talker
import numpy as np
import pytest
import torch
from checkpoint_shapes import CODEC_BOS, CODEC_EOS, CODEC_MASK, CODEC_PAD, CODES, TALKER_VOCABULARY
from checkpoint_tokenizer import token_ids
from nearfield.errors import ContextLimitError
from nearfield.export.bind import Reader, write_component
from nearfield.export.checkpoint import Checkpoint
from nearfield.export.decoder import DecoderConfig
from nearfield.export.graph import Style
from nearfield.export.talker import talker_graph
from nearfield.runtime import manifest
from nearfield.runtime.decoder import Decoder
from nearfield.runtime.manifest import Component, KVCache
from nearfield.runtime.sampling import GREEDY, TALKER_DEFAULT, Sampler, Sampling
from nearfield.runtime.session import Array, Session, SessionSettings, open_session
from nearfield.runtime.talker import Talker
from transformers import Qwen2_5OmniForConditionalGeneration

IDS = token_ids()
GREEDY_TALKER = replace(GREEDY, repetition_penalty=TALKER_DEFAULT.repetition_penalty)
CODES_WANTED = 128
CONTEXT = 256


@dataclass(frozen=True)
class Case:
    """The Talker of one checkpoint, in the runtime and in the reference."""

    reference: Qwen2_5OmniForConditionalGeneration
    session: Session
    config: DecoderConfig

    def talker(self, *, context: int = CONTEXT, code_count: int = CODES) -> Talker:
        config = self.config
        cache = KVCache(layers=config.layers, kv_heads=config.kv_heads, head_dim=config.head_dim)
        component = Component(graph="", data="", dtype="float32", dialect="ort", parameters=0, quantization=None)
        text = self.text_embedding()
        settings = manifest.Talker(
            embedding_size=text.shape[1],
            vocab_size=TALKER_VOCABULARY,
            max_positions=config.max_positions,
            kv_cache=cache,
            rope_theta=config.rope_theta,
            mrope_section=list(config.mrope_section),
            embedding="",
            codec_bos_token_id=CODEC_BOS,
            codec_eos_token_id=CODEC_EOS,
            codec_pad_token_id=CODEC_PAD,
            codec_mask_token_id=CODEC_MASK,
            text_eos_token_id=IDS.tts_eos,
            text_pad_token_id=IDS.tts_pad,
        )
        decoder = Decoder(self.session, component, cache, name="Talker", vocab_size=TALKER_VOCABULARY, context=context)
        codes = self.reference.talker.get_input_embeddings().weight.detach().numpy()
        return Talker(decoder, settings, codes, text, code_count=code_count)

    def text_embedding(self) -> Array:
        table: Array = self.reference.thinker.get_input_embeddings().weight.detach().numpy()
        return table

    @torch.no_grad()
    def expected_codes(self, prompt: Prompt, **generation: Any) -> list[int]:
        """What the reference's Talker says to the same rows, put together as the whole model's `generate` does.

        One masked position goes in front, see `whole_reply.left_padded`.
        """
        text = torch.from_numpy(self.text_embedding())
        ids, rows, reply = prompt.ids, torch.from_numpy(prompt.rows)[None], torch.from_numpy(prompt.reply)[None]
        codec = [CODEC_MASK] * (1 + len(ids)) + [CODEC_PAD, CODEC_BOS]
        result = self.reference.talker.generate(
            input_ids=torch.tensor([codec]),
            input_text_ids=torch.tensor([[IDS.endoftext, *ids, IDS.voice_ethan, 7]]),
            inputs_embeds=torch.cat([text[None, :1], rows, text[None, [IDS.voice_ethan]], reply[:, :1]], 1),
            thinker_reply_part=torch.cat([reply[:, 1:], text[None, [IDS.tts_eos, IDS.tts_pad]]], 1),
            attention_mask=torch.tensor([[0] + [1] * (len(codec) - 1)]),
            suppress_tokens=[CODEC_BOS],
            eos_token_id=[CODEC_PAD, CODEC_EOS],
            pad_token_id=CODEC_PAD,
            image_grid_thw=prompt.grid,
            **{"do_sample": False, "repetition_penalty": 1.05, "max_new_tokens": CODES_WANTED, **generation},
        )
        codes: list[int] = result[0, len(codec) :].tolist()
        stops = [place for place, code in enumerate(codes) if code in (CODEC_PAD, CODEC_EOS)]
        return codes[: stops[0]] if stops else codes


@dataclass(frozen=True)
class Prompt:
    """Rows of a prompt with a picture in it, its ids and positions, and rows of a reply."""

    ids: list[int]
    grid: torch.Tensor
    position_ids: Array
    rows: Array
    reply: Array


def make_prompt(case: Case, reply_rows: int, *, side: int = 6, text_after: int = 5, seed: int = 0) -> Prompt:
    ids = [IDS.im_start, 5, 6, IDS.vision_bos, *[IDS.image] * (side * side // 4), IDS.vision_eos, *range(text_after)]
    grid = torch.tensor([[1, side, side]])
    position_ids, _ = case.reference.talker.get_rope_index(
        torch.tensor([ids]), image_grid_thw=grid, attention_mask=torch.ones(1, len(ids), dtype=torch.long)
    )
    rng = np.random.default_rng(seed)
    width = case.text_embedding().shape[1]
    return Prompt(
        ids,
        grid,
        position_ids[:, 0].numpy(),
        rng.standard_normal((len(ids), width)).astype(np.float32),
        rng.standard_normal((reply_rows, width)).astype(np.float32),
    )


@pytest.fixture(scope="module", params=["3b", "7b"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    checkpoint = Checkpoint.open(request.getfixturevalue(f"checkpoint_{request.param}"))
    config = DecoderConfig.from_hf(checkpoint.config.section("talker_config"))
    width = checkpoint.config.section("talker_config").integer("embedding_size")
    directory = Path(tmp_path_factory.mktemp("talker"))
    written = write_component(talker_graph(config, width, Style("ort", "float32")), Reader(checkpoint), directory)
    session = open_session(directory / written.graph, SessionSettings(threads=1))
    return Case(request.getfixturevalue(f"reference_{request.param}"), session, config)


def begin(
    talker: Talker, prompt: Prompt, sampling: Sampling = GREEDY_TALKER, max_codes: int = CODES_WANTED, seed: int = 0
) -> None:
    talker.reset()
    talker.read(prompt.rows, prompt.position_ids)
    talker.begin(
        next_position=int(prompt.position_ids[0, -1]) + 1,
        largest_position=int(prompt.position_ids.max()),
        voice_bos_token_id=IDS.voice_ethan,
        sampling=sampling,
        generator=np.random.default_rng(seed),
        max_codes=max_codes,
    )


def say(talker: Talker, prompt: Prompt, **options: Any) -> list[int]:
    """All rows first, then all codes."""
    begin(talker, prompt, **options)
    for row in prompt.reply:
        talker.push(row)
    talker.finish_text()
    return list(talker.codes())


@pytest.mark.parametrize("rows", [1, 2])
def test_speech_that_goes_on_long_after_its_text_ends(case: Case, rows: int) -> None:
    talker = case.talker(context=512)
    codes = say(talker, make_prompt(case, rows), max_codes=400)
    assert (len(codes), talker.stop_reason) == (100 + 40 * rows, "text")


@pytest.mark.parametrize("reply_rows", [1, 2, 9])
def test_greedy_codes_are_those_of_the_reference(case: Case, reply_rows: int) -> None:
    prompt = make_prompt(case, reply_rows, seed=reply_rows)
    talker = case.talker()
    codes = say(talker, prompt)
    assert codes == case.expected_codes(prompt)
    assert len(codes) > reply_rows + 2, "speech must go on past the end of the text for this to be a test"
    assert talker.stop_reason == ("max_codes" if len(codes) == CODES_WANTED else "end")


def test_positions_after_a_picture_that_reaches_past_the_text_are_the_references(case: Case) -> None:
    """With little text after a large picture, the largest id of the prompt is not that of its last token by much."""
    prompt = make_prompt(case, 3, side=20, text_after=0, seed=5)
    assert say(case.talker(), prompt) == case.expected_codes(prompt)


def test_rows_that_come_one_by_one_give_the_same_codes(case: Case) -> None:
    prompt = make_prompt(case, 9)
    talker = case.talker()
    expected = say(talker, prompt)
    begin(talker, prompt)
    codes: list[int] = []
    for row in prompt.reply:
        assert not talker.ready
        talker.push(row)
        codes += talker.codes()
    talker.finish_text()
    codes += talker.codes()
    assert codes == expected


def test_a_talker_speaks_one_reply_after_another(case: Case) -> None:
    first, second = make_prompt(case, 4, seed=1), make_prompt(case, 6, seed=2)
    talker = case.talker()
    say(talker, first)
    assert say(talker, second) == say(case.talker(), second)


def test_sampled_codes_repeat_with_the_seed_and_stay_inside_the_dits(case: Case) -> None:
    prompt = make_prompt(case, 4)
    hot = Sampling(temperature=50.0)  # nearly uniform over the vocabulary, most of whose top has no code
    few = 100
    talker = case.talker(code_count=few)
    drawn = [say(talker, prompt, sampling=hot, seed=seed) for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert max(max(codes, default=0) for codes in drawn) < few


class Told(Sampler):
    """Chooses what it is told to, and remembers what it was made with."""

    made_with: ClassVar[list[dict[str, list[int]]]] = []
    choices: ClassVar[list[int]] = []

    def __init__(
        self,
        settings: Sampling,
        vocab_size: int,
        generator: np.random.Generator,
        *,
        seen: Iterable[int] = (),
        suppressed: Iterable[int] = (),
    ) -> None:
        self.made_with.append({"seen": sorted(seen), "suppressed": sorted(suppressed)})
        super().__init__(settings, vocab_size, generator)

    def choose(self, logits: Array) -> int:
        del logits
        return self.choices.pop(0)


@pytest.mark.parametrize("stop", [CODEC_EOS, CODEC_PAD])
def test_the_codec_end_and_pad_tokens_end_speech(case: Case, stop: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearfield.runtime.talker, "Sampler", Told)
    monkeypatch.setattr(Told, "choices", [3, stop])
    monkeypatch.setattr(Told, "made_with", [])
    prompt = make_prompt(case, 2)
    talker = case.talker()
    assert say(talker, prompt) == [3]
    assert talker.stop_reason == "end"
    assert not talker.ready
    # The reference's penalty counts the codec ids of its prompt; of the ids without a code, stops can be chosen.
    without_code = set(range(CODES, TALKER_VOCABULARY)) - {CODEC_EOS, CODEC_PAD}
    assert Told.made_with == [
        {"seen": sorted([CODEC_MASK, CODEC_PAD, CODEC_BOS]), "suppressed": sorted(without_code)},
    ]


def test_limits_end_speech_with_their_reason(case: Case) -> None:
    prompt = make_prompt(case, 2)
    talker = case.talker()
    whole = say(talker, prompt)
    assert say(talker, prompt, max_codes=5) == whole[:5]
    assert talker.stop_reason == "max_codes"
    room = 7
    small = case.talker(context=len(prompt.ids) + 1 + room)
    assert say(small, prompt) == whole[:room]
    assert small.stop_reason == "context"
    with pytest.raises(ContextLimitError, match=r"Talker: .* its context holds"):
        begin(case.talker(context=len(prompt.ids) + 1), prompt)


def test_an_empty_reply_is_silent(case: Case) -> None:
    talker = case.talker()
    begin(talker, make_prompt(case, 1))
    talker.finish_text()
    assert not talker.ready
    assert talker.stop_reason == "end"


def test_steps_out_of_order_are_refused(case: Case) -> None:
    talker = case.talker()
    with pytest.raises(ValueError, match="not ready"):
        talker.step()
    prompt = make_prompt(case, 1)
    begin(talker, prompt)
    with pytest.raises(ValueError, match="not ready"):
        talker.step()
    talker.finish_text()
    with pytest.raises(ValueError, match="after finish_text"):
        talker.push(prompt.reply[0])
