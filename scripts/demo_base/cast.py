"""Who is in a story: names, pronouns, and how they are first spoken of."""

import random

from grammar import tidy, words
from world import ANIMALS

BOYS = words(
    "Tom Ben Sam Max Jack Leo Tim Finn Oscar Hugo Adam Peter Henry Luke Noah Paul Omar Ivan Ravi Kofi Bob "
    "Dan Eric Felix George"
)
GIRLS = words(
    "Anna Lily Mia Emma Lucy Sara Ella Rosa Zoe Nina Ruth Jane Kate Maya Clara Ida Alma Amina Yuki Leila Sue "
    "Daisy Eva Grace Holly"
)
PETS = words("Rex Spot Fluffy Bella Coco Rusty Biscuit Pepper Snowy Patch Ginger Pip Dot Teddy Sunny Misty")

MALE = {"he": "he", "him": "him", "his": "his", "himself": "himself", "was": "was", "has": "has"}
FEMALE = {"he": "she", "him": "her", "his": "her", "himself": "herself", "was": "was", "has": "has"}
PLURAL = {"he": "they", "him": "them", "his": "their", "himself": "themselves", "was": "were", "has": "have"}

_RELATIVES = {
    "mother": FEMALE, "father": MALE, "grandmother": FEMALE, "grandfather": MALE, "aunt": FEMALE,
    "uncle": MALE, "big sister": FEMALE, "big brother": MALE, "teacher": FEMALE,
}  # fmt: skip
_NATURES = words("kind happy clever brave quiet cheerful shy curious funny gentle careful lively")
_SMALL = ("little", "young", "small")

HOMES = (
    "in a small house near the forest",
    "in a little house by the sea",
    "in a village in the hills",
    "on a farm",
    "in a big town",
    "in a small village",
    "in a house near the river",
    "in a white house on a hill",
    "in a flat in the city",
    "in a cottage with a green garden",
    "in a house with a red door",
)

HEROES = tuple(a.name for a in ANIMALS if a.name not in ("ant", "whale", "fish", "snail", "spider", "bee"))
"""The animals that walk, run or fly through a story."""


def child(rng: random.Random) -> dict[str, str]:
    """Return the slots of a story about one child."""
    girl = rng.random() < 0.5
    name = rng.choice(GIRLS if girl else BOYS)
    noun = "girl" if girl else "boy"
    small, nature = rng.choice(_SMALL), rng.choice(_NATURES)
    entrance = rng.choice(
        (
            f"Once upon a time, there was a {small} {noun} named {name}.",
            f"Once there was a {nature} {noun} named {name}.",
            f"Once upon a time, a {noun} named {name} lived {rng.choice(HOMES)}.",
            f"{name} was a {nature} {noun} who lived {rng.choice(HOMES)}.",
            f"There was once a {nature} {noun} called {name}.",
            f"{name} was a {small} {noun}.",
            "",
        )
    )
    return {"A": name, "enter": entrance, "noun": noun} | (FEMALE if girl else MALE)


def pair(rng: random.Random) -> dict[str, str]:
    """Return the slots of a story about two children."""
    first, second = rng.sample(GIRLS + BOYS, 2)
    both = f"{first} and {second}"
    entrance = rng.choice(
        (
            f"{both} were good friends.",
            f"Once upon a time, there were two friends named {both}.",
            f"{both} lived in the same {rng.choice(('street', 'village', 'town'))}.",
            f"{both} did everything together.",
            f"Once upon a time, {both} lived {rng.choice(HOMES)}.",
            "",
            "",
        )
    )
    return {"A": both, "enter": entrance, "noun": "children"} | PLURAL


def animal(rng: random.Random, kind: str = "") -> dict[str, str]:
    """Return the slots of a story about an animal: of one kind, or of any."""
    kind = kind or rng.choice(HEROES)
    home = next(a.home for a in ANIMALS if a.name == kind)
    small, nature = rng.choice(_SMALL), rng.choice(_NATURES)
    pronouns = rng.choice((MALE, FEMALE))
    if rng.random() < 0.4:
        name = rng.choice(PETS)
        entrance = rng.choice(
            (
                f"Once upon a time, there was a {small} {kind} named {name}.",
                f"{name} was a {nature} {kind} who lived {home}.",
                f"Once there was a {nature} {kind} called {name}.",
                f"There was once a {small} {kind} named {name} who lived {home}.",
            )
        )
    else:
        name = f"the {kind}"
        entrance = rng.choice(
            (
                f"Once upon a time, a {small} {kind} lived {home}.",
                f"The {small} {kind} lived {home}.",
                f"Once upon a time, there was a {nature} {kind}.",
                f"There was once a {nature} {kind} who lived {home}.",
                f"The {small} {kind} was very {rng.choice(_NATURES)}.",
                f"The {small} {kind} woke up early {rng.choice(('one morning', 'and looked outside'))}.",
            )
        )
    return {"A": name, "enter": tidy(entrance), "noun": kind, "home": home} | pronouns


def helper(rng: random.Random, hero: dict[str, str]) -> dict[str, str]:
    """Return the slots of a relative who helps: H, h_he, h_him, h_his."""
    relative, pronouns = rng.choice(list(_RELATIVES.items()))
    return {"H": f"{hero['his']} {relative}"} | {f"h_{name}": word for name, word in pronouns.items()}


def friend(rng: random.Random, hero: dict[str, str]) -> dict[str, str]:
    """Return the slots of another child: F, f_he, f_him, f_his."""
    girl = rng.random() < 0.5
    name = rng.choice([name for name in (GIRLS if girl else BOYS) if name not in hero["A"].split()])
    return {"F": name} | {f"f_{key}": word for key, word in (FEMALE if girl else MALE).items()}


def beast(rng: random.Random, hero: dict[str, str]) -> dict[str, str]:
    """Return the slots of another animal: G with its pronouns, and what it eats and says."""
    options = [a for a in ANIMALS if a.name in HEROES and a.name != hero["noun"] and a.sound]
    other = rng.choice(options)
    pronouns = rng.choice((MALE, FEMALE))
    slots = {"G": f"the {other.name}", "a_G": f"a {other.name}", "g_food": other.food, "g_home": other.home}
    return slots | {f"g_{key}": word for key, word in pronouns.items()}
