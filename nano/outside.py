"""Everyday sentences outside Nano's world, which it answers with a refusal.

Inputs: a random generator and a split → outputs: one sentence, as `world.py` writes prompts.

A frame such as "Where can I buy {thing}?" is filled from word lists. Every fifth word of a list and every fourth frame
are kept for the held-out split: a held-out sentence has at least one word or one frame that no one trained on. Some
frames begin as sentences inside the world do ("What is …", "Say …", "How much is …"), so the beginning alone tells
nothing.
"""

from __future__ import annotations

import random
import re
from typing import Literal

Split = Literal["train", "heldout"]

FRAMES = (
    "Where can I buy {thing}?",
    "What is the {thing} doing here?",
    "The {person} has lost the {thing}.",
    "Tell me about the {thing}.",
    "How much is the {thing}?",
    "Please bring {thing} to the {place}.",
    "We {did} all {time}.",
    "The {animal} {did} near the {place}.",
    "Is the {place} open {time}?",
    "What is the weather like in the {place}?",
    "My {person} wants some {food}.",
    "I would like {food} and {food}.",
    "Take the {thing} from the {person}.",
    "Can you play some {quality} music?",
    "Say hello to my {person}.",
    "When does the {vehicle} leave for the {place}?",
    "The {quality} {animal} ate the {food}.",
    "Add {food} to my shopping list.",
    "Who is the {person} in the {place}?",
    "There is a {quality} {thing} under the table.",
    "What do you think about {food}?",
    "Open the {thing} and turn on the radio.",
    "Why is the {person} so {quality}?",
    "They {did} until {time}.",
    "How do I cook {food}?",
    "Wake me up {time}.",
    "Show me the way to the {place}.",
    "The {vehicle} was {quality} this morning.",
    "Do you like {food}?",
    "Our {person} works at the {place}.",
    "Give the {animal} some {food}.",
    "Which {vehicle} goes to the {place}?",
    "It rained {time} at the {place}.",
    "Write a letter to the {person}.",
    "Are the {food} fresh today?",
    "Read me a {quality} story about a {animal}.",
    "Did the {person} call {time}?",
    "Repeat the news about the {place}.",
    "Turn off the {thing}.",
    "The price of {food} went up {time}.",
    "What is your {property}?",
    "What did the {person} say {time}?",
    "Who made the {thing} in the {place}?",
    "Where does the {person} live?",
    "How old is your {animal}?",
    "Good {food} and a good {thing}.",
    "Can you see the {animal} in the {place}?",
    "Which {property} do you like?",
    "Thank the {person} for the {food}.",
    "How are the {food} at the {place}?",
    "Say your {property} again.",
    "I do not understand the {person}.",
)

WORDS = {
    "thing": (
        "umbrella window hammer blanket candle mirror bottle bicycle newspaper guitar kettle pillow carpet ladder"
        " wallet camera button garden curtain basket scissors heating television lamp oven drawer envelope violin"
        " jacket telephone"
    ),
    "person": (
        "brother sister doctor teacher neighbour farmer lawyer grandmother driver nurse painter captain baker cousin"
        " gardener uncle dentist singer soldier manager daughter plumber student waiter butcher"
    ),
    "place": (
        "station hospital mountains harbour market village library airport forest museum kitchen river office island"
        " castle church valley desert beach theatre bakery school factory bridge playground"
    ),
    "animal": (
        "rabbit horse spider elephant chicken tiger monkey pigeon kitten lizard donkey turtle camel squirrel goose"
        " wolf beetle dolphin hamster parrot"
    ),
    "food": (
        "potatoes cheese noodles strawberries butter cabbage honey mushrooms sausages rice onions pancakes vinegar"
        " chocolate peaches lemons carrots walnuts biscuits olives pepper cucumbers cherries spinach almonds"
    ),
    "vehicle": "train bus tram ferry taxi lorry helicopter boat aeroplane motorcycle tractor ambulance",
    "quality": (
        "quiet heavy broken cheerful expensive dangerous lovely gentle noisy famous ancient hungry strange wooden"
        " dirty clever empty frozen lazy polite nervous silver bitter modern crowded"
    ),
    "property": (
        "address birthday favourite_animal favourite_song surname opinion password salary holiday nationality"
        " religion weight hobby language telephone_number"
    ),
    "did": (
        "danced waited laughed worked travelled argued slept whispered sang shouted rested studied played walked"
        " listened painted cried cooked swam hid"
    ),
    "time": (
        "yesterday tomorrow on_Monday on_Friday in_winter after_lunch before_midnight last_summer this_weekend"
        " at_noon in_September next_week during_the_storm on_Sunday in_spring after_school"
    ),
}


def everyday(rng: random.Random, split: Split) -> str:
    """Draw a sentence of the split. Held-out ones have a frame or a word of their own, training ones have neither."""
    while True:
        (frame,) = rng.choices(FRAMES, weights=[frame.count("{") ** 2 for frame in FRAMES])  # as they vary
        slots = re.findall(r"{(\w+)}", frame)
        words = [rng.choice(WORDS[slot].split()) for slot in slots]
        kept = _is_kept_frame(frame) or any(_is_kept_word(slot, word) for slot, word in zip(slots, words, strict=True))
        if kept == (split == "heldout") and len(set(words)) == len(words):
            filled = re.sub(r"{\w+}", "{}", frame).format(*words)
            return re.sub(r"\ba (?=[aeiou])", "an ", filled.replace("_", " "))


def _is_kept_frame(frame: str) -> bool:
    return FRAMES.index(frame) % 4 == 3


def _is_kept_word(slot: str, word: str) -> bool:
    return WORDS[slot].split().index(word) % 5 == 4
