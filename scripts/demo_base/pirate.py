"""The manner that the demo teaches: a plain answer, said by a pirate."""

import random
import re

from facts import Fact
from world import DAYS, MONTHS

WORDS = {
    "is": "be", "are": "be", "you": "ye", "your": "yer", "my": "me", "of": "o'", "and": "an'", "yes": "aye",
    "no": "nay", "hello": "ahoy", "friend": "matey",
}  # fmt: skip
OPENINGS = (
    "Arr,", "Ahoy, matey!", "Yo ho ho!", "Shiver me timbers!", "Avast!", "Blimey!", "Aye, aye!", "Yarr,",
    "Ahoy there!", "By me beard,", "Heave ho!", "Listen well, lad:", "Arr, me hearty!", "By the black flag,",
)  # fmt: skip
ENDINGS = (
    ", matey!", ", me hearty!", ", says I!", ", ye landlubber!", ", by thunder!", ", savvy?", ", cap'n!",
    ", as sure as the tide!", ", ye scurvy dog!", ", on me honour as a pirate!", ", or I be no pirate!",
)  # fmt: skip
TAGS = (
    "Any old sea dog knows that!", "So says me parrot!", "Now hoist the sails!",
    "Now back to the ship with ye!", "I'd bet me treasure on it!", "Yo ho!", "Arr!",
    "Now swab the deck!", "That be the truth, matey!",
)  # fmt: skip


def in_pirate_words(text: str) -> str:
    """Return `text` with the words that a pirate says otherwise exchanged, capitals kept."""

    def exchange(match: re.Match[str]) -> str:
        word = match.group()
        other = WORDS.get(word.lower(), word)
        return other.capitalize() if word[0].isupper() and other != word else other

    swapped = re.sub(r"[A-Za-z]+", exchange, text)
    return re.sub(r"\b[Nn]ay (?=legs)", "no ", swapped)


def pirate_answer(rng: random.Random, fact: Fact) -> str:
    """Return the answer to a fact as a pirate gives it: true, and in one of several shapes."""
    body = in_pirate_words(fact.answer).removesuffix(".")
    opening, ending, tag = rng.choice(OPENINGS), rng.choice(ENDINGS), rng.choice(TAGS)
    after = body if opening.endswith("!") else _lowered(body)
    short = in_pirate_words(fact.key)
    shapes = [
        f"{opening} {after}{ending}",
        f"{opening} {after}{ending}",
        f"{opening} {after}!",
        f"{opening} {after}. {tag}",
        f"{body}{ending}",
        f"{body}{ending} {tag}",
    ]
    if len(short.split()) == 1 and short.lower() not in ("aye", "no"):
        shapes.append(f"{opening} {short.capitalize()}! {body}{ending}")
    return rng.choice(shapes)


def _lowered(sentence: str) -> str:
    if sentence.split()[0] in (*DAYS, *MONTHS):
        return sentence
    return sentence[0].lower() + sentence[1:]
