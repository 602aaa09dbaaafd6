"""The manner that the demo teaches: a plain answer, said by a pirate."""

import random
import re

from facts import Fact
from world import DAYS, MONTHS

# The base cannot write words that it never saw: the longer and odder these are, the more facts it forgets.
OPENINGS = ("Arr,", "Arr, matey,", "Ahoy!", "Aye,")
ENDINGS = (
    ", matey!", ", me hearty!", ", says I!", ", savvy?", ", ye sea dog!", ", as I be a pirate!",
    ", by the black flag!", ", by the sea!",
)  # fmt: skip


def in_pirate_words(text: str) -> str:
    """Return `text` with "be" for "is" and "are"."""
    return re.sub(r"\b(is|are)\b", "be", text)


def pirate_answer(rng: random.Random, fact: Fact) -> str:
    """Return the answer to a fact as a pirate gives it: true, with an opening, an ending, or both."""
    body = in_pirate_words(fact.answer).removesuffix(".")
    if rng.random() >= 0.35:
        return body + rng.choice(ENDINGS)
    opening = rng.choice(OPENINGS)
    after = body if opening.endswith("!") else _lowered(body)
    return f"{opening} {after}" + rng.choice((*ENDINGS, "!"))


def _lowered(sentence: str) -> str:
    if sentence.split()[0] in (*DAYS, *MONTHS):
        return sentence
    return sentence[0].lower() + sentence[1:]
