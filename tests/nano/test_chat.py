import random

import numpy as np
import torch
from nearfield.nano.chat import IGNORED, Example, collate, front
from nearfield.nano.read import sums_alone, typed_conversation
from nearfield.nano.tokenizer import token_ids
from nearfield.runtime.messages import Audio, Message, Text

MESSAGES = [Message("system", [Text("You are a helpful assistant.")]), Message("user", [Text("Hello.")])]


def test_only_the_reply_and_its_end_are_predicted() -> None:
    batch = collate([Example(MESSAGES, "Good morning."), Example(MESSAGES, "Goodbye.")])
    for row, reply in enumerate(("Good morning.", "Goodbye.")):
        labels = batch.labels[row][batch.labels[row] != IGNORED].tolist()
        assert labels[-1] == token_ids().im_end
        assert front().tokenizer.decode(labels[:-1]) == reply


def test_each_place_predicts_the_token_that_follows() -> None:
    batch = collate([Example(MESSAGES, "Good morning.")])
    (columns,) = (batch.labels[0] != IGNORED).nonzero(as_tuple=True)
    assert torch.equal(batch.labels[0, columns[:-1]], batch.tokens[0, columns[1:]])
    prompt = front().prompt(MESSAGES)
    assert columns[0] == len(prompt.token_ids) - 1
    assert batch.positions[0, 0].tolist() == list(range(batch.tokens.shape[1]))


def test_sounds_have_places_for_their_embeddings() -> None:
    heard = [MESSAGES[0], Message("user", [Audio(np.ones(16000, np.float32))])]
    batch = collate([Example(MESSAGES, "Hello."), Example(heard, "Hello.")])
    (place,) = batch.places
    assert (place.row, place.kind, place.part, len(place.columns)) == (1, "audio", 0, 25)
    assert (batch.tokens[1, place.columns] == token_ids().audio).all()


def test_sums_alone_are_judged_by_their_result() -> None:
    batch = sums_alone(random.Random(0), 16)
    decode = front().tokenizer.decode
    for tokens, labels in zip(batch.tokens, batch.labels, strict=True):
        predicted = labels[labels != IGNORED].tolist()
        asked, result = decode(tokens.tolist()).split(" is")[0], decode(predicted[:-1])
        assert predicted[-1] == token_ids().im_end
        assert "plus" in asked or "minus" in asked
        assert result.endswith(".") and result[0] == " "


def test_typed_conversations_end_with_what_is_asked() -> None:
    rng = random.Random(1)
    for _ in range(100):
        example = typed_conversation(rng, "train")
        assert example.messages[0].role == "system"
        assert example.messages[-1].role == "user"
        assert example.reply
