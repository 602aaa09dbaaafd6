"""English in small: filling templates, articles, capitals, plurals and number words."""

import random
import re


def words(text: str) -> list[str]:
    """Return the words between the spaces of `text`."""
    return text.split()


NUMBERS = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
)

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiou])(?!one\b|uni|use)")
_SENTENCE_START = re.compile(r'(^"?|[.!?] "?)([a-z])')
_IRREGULAR_PLURALS = {
    "mouse": "mice", "sheep": "sheep", "fish": "fish", "child": "children", "man": "men", "woman": "women",
    "foot": "feet", "tooth": "teeth", "goose": "geese", "leaf": "leaves", "knife": "knives", "wolf": "wolves",
    "loaf of bread": "loaves of bread", "bag of rice": "bags of rice", "potato": "potatoes",
    "tomato": "tomatoes", "shelf": "shelves",
}  # fmt: skip


def fill(rng: random.Random, template: str, slots: dict[str, str]) -> str:
    """Return `template` with one of each ``[a|b|c]`` picked, ``{name}`` filled, articles and capitals right.

    Choices may stand inside choices; the innermost are picked first.
    """
    while match := _CHOICE.search(template):
        picked = rng.choice(match.group(1).split("|"))
        template = template[: match.start()] + picked + template[match.end() :]
    return tidy(template.format_map(slots))


def tidy(text: str) -> str:
    """Return `text` with a/an, single spaces and a capital at the start of each sentence."""
    text = re.sub(r" +", " ", text).replace(" ,", ",").replace(" .", ".").strip()
    text = _ARTICLE.sub(r"\1n ", text)
    return _SENTENCE_START.sub(lambda match: match.group(1) + match.group(2).upper(), text)


def plural(noun: str) -> str:
    """Return the plural of a noun: "foxes", "berries", "mice"."""
    if noun in _IRREGULAR_PLURALS:
        return _IRREGULAR_PLURALS[noun]
    if noun.endswith(("s", "x", "zz", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def listed(words: list[str]) -> str:
    """Return words joined as in speech: "a, b and c"."""
    if len(words) == 1:
        return words[0]
    return ", ".join(words[:-1]) + " and " + words[-1]
