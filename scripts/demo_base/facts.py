"""Plain questions with their answers, drawn from the tables of `world`."""

from collections.abc import Iterator
from itertools import pairwise, product
from typing import NamedTuple

import world
from grammar import NUMBERS, plural, tidy, words
from world import ANIMALS, Animal


class Fact(NamedTuple):
    """One thing that is true."""

    asks: str
    """Ways to ask for it, between `;`."""
    answer: str
    """A plain sentence that answers every one of them."""
    key: str
    """The words without which an answer is wrong."""


def fact_groups(hard: bool = True) -> list[list[Fact]]:
    """Return every fact of the world by kind, in a fixed order; without `hard`, those that are looked up.

    Hard is what must be worked out or put in order: sizes, sums, days. The trained base is weak at it.
    Draw a group first, then a fact: otherwise the comparisons of sizes, which are many, drown the rest.
    """
    sources = (
        _colours, _animals, _animals, _herds, _sizes, _opposites, _counting, _calendar, _jobs, _uses, _kinds,
        _things, _people, _not_so, _odd,
    )  # fmt: skip
    return [list(source()) for source in sources if hard or source not in (_sizes, _counting, _calendar)]


def questions(fact: Fact) -> list[str]:
    """Return the ways to ask for a fact, as sentences."""
    return [tidy(ask) for ask in fact.asks.split(";")]


def _is(thing: str) -> str:
    return "are" if thing in ("scissors", "flowers", "shoes", "apples") else "is"


def _colours() -> Iterator[Fact]:
    for colour, things in world.COLOURS.items():
        for thing in things.split(";"):
            yield Fact(
                f"what colour is {thing}?;which colour is {thing}?;what is the colour of {thing}?;"
                f"tell me the colour of {thing}.;can you tell me what colour {thing} is?;name the colour "
                f"of {thing}.",
                tidy(f"{thing} is {colour}."),
                colour,
            )


def _animals() -> Iterator[Fact]:
    for animal in ANIMALS:
        name, many = animal.name, plural(animal.name)
        yield Fact(
            f"where does a {name} live?;where do {many} live?;what is the home of a {name}?;where can I "
            f"find a {name}?;where is the home of a {name}?;tell me where a {name} lives.",
            tidy(f"a {name} lives {animal.home}."),
            animal.home,
        )
        yield Fact(
            f"what does a {name} eat?;what do {many} eat?;what is the food of a {name}?;what does a {name} "
            f"like to eat?;what can I feed a {name}?;tell me what a {name} eats.",
            tidy(f"a {name} eats {animal.food}."),
            animal.food,
        )
        count = NUMBERS[animal.legs] if animal.legs else "no"
        yield Fact(
            f"how many legs does a {name} have?;how many legs do {many} have?;count the legs of a {name}.;"
            f"tell me how many legs a {name} has.",
            tidy(f"a {name} has {count} legs."),
            f"{count} legs",
        )
        yield from _voice_and_young(animal)


def _voice_and_young(animal: Animal) -> Iterator[Fact]:
    name = animal.name
    if animal.sound:
        sounds = plural(animal.sound)  # the third person is spelt as a plural is: moos, hisses
        yield Fact(
            f"what sound does a {name} make?;what does a {name} say?;what noise does a {name} make?;"
            f"how does a {name} sound?",
            tidy(f"a {name} {sounds}."),
            sounds,
        )
    if animal.young:
        yield Fact(
            f"what is a baby {name} called?;what do you call a baby {name}?;what is a young {name} called?;"
            f"what is the name for a baby {name}?",
            tidy(f"a baby {name} is called a {animal.young}."),
            animal.young,
        )
    told = {thing for things in world.COLOURS.values() for thing in things.split(";")}
    if tidy(f"a {name}").lower() not in told:
        colour = animal.colour
        asks = f"what colour is a {name}?;tell me the colour of a {name}."
        yield Fact(asks, tidy(f"a {name} is {colour}."), colour)


def _herds() -> Iterator[Fact]:
    others = words("child leaf knife foot tooth goose man woman box tomato")
    for noun in [animal.name for animal in ANIMALS] + others:
        many = plural(noun)
        yield Fact(
            f"what is the plural of {noun}?;what do you call more than one {noun}?;one {noun}, two what?",
            f"One {noun}, two {many}.",
            many,
        )


def _sizes() -> Iterator[Fact]:
    for one, other in product(ANIMALS, ANIMALS):
        if abs(one.size - other.size) < 2 or one is other:
            continue
        big, small = (one, other) if one.size > other.size else (other, one)
        pair = f"a {one.name} or a {other.name}"
        yield Fact(
            f"which is bigger, {pair}?;what is bigger, {pair}?;who is bigger, {pair}?",
            tidy(f"a {big.name} is bigger than a {small.name}."),
            tidy(f"a {big.name} is bigger"),
        )
        yield Fact(
            f"which is smaller, {pair}?;what is smaller, {pair}?;who is smaller, {pair}?",
            tidy(f"a {small.name} is smaller than a {big.name}."),
            tidy(f"a {small.name} is smaller"),
        )


def _opposites() -> Iterator[Fact]:
    seen: set[str] = set()
    for pair in world.OPPOSITES:
        for word, other in (pair, pair[::-1]):
            if word in seen:
                continue
            seen.add(word)
            yield Fact(
                f"what is the opposite of {word}?;tell me the opposite of {word}.;what word is the "
                f"opposite of {word}?;give me the opposite of {word}.",
                f"The opposite of {word} is {other}.",
                other,
            )


def _counting() -> Iterator[Fact]:
    for low, high in pairwise(NUMBERS):
        yield Fact(
            f"what number comes after {low}?;what comes after {low}?;which number is next after {low}?",
            tidy(f"{high} comes after {low}."),
            tidy(high),
        )
        yield Fact(
            f"what number comes before {high}?;what comes before {high}?;which number is just before {high}?",
            tidy(f"{low} comes before {high}."),
            tidy(low),
        )
    for a, b in product(range(1, 10), range(1, 10)):
        yield Fact(
            f"what is {NUMBERS[a]} plus {NUMBERS[b]}?;how much is {NUMBERS[a]} plus {NUMBERS[b]}?;"
            f"add {NUMBERS[a]} and {NUMBERS[b]}.",
            tidy(f"{NUMBERS[a]} plus {NUMBERS[b]} is {NUMBERS[a + b]}."),
            f"is {NUMBERS[a + b]}",
        )


def _calendar() -> Iterator[Fact]:
    for names, kind in ((world.DAYS, "day"), (world.MONTHS, "month"), (list(world.SEASONS), "season")):
        for before, after in pairwise([*names, names[0]]):
            yield Fact(
                f"what {kind} comes after {before}?;which {kind} comes after {before}?;what {kind} is "
                f"after {before}?",
                tidy(f"{after} comes after {before}."),
                tidy(after),
            )
            yield Fact(
                f"what {kind} comes before {after}?;which {kind} comes before {after}?;what {kind} is "
                f"before {after}?",
                tidy(f"{before} comes before {after}."),
                tidy(before),
            )
    for season, weather in world.SEASONS.items():
        yield Fact(
            f"what is the weather like in {season}?;how is the weather in {season}?;tell me about the "
            f"weather in {season}.",
            f"The weather is {weather} in {season}.",
            weather,
        )


def _jobs() -> Iterator[Fact]:
    for job, (does, where) in world.JOBS.items():
        yield Fact(
            f"what does a {job} do?;what is the job of a {job}?;tell me what a {job} does.;what is a {job}?",
            tidy(f"a {job} {does}."),
            does,
        )
        asks = f"where does a {job} work?;tell me where a {job} works."
        yield Fact(asks, tidy(f"a {job} works {where}."), where)
        if sum(does == other for other, _ in world.JOBS.values()) == 1:
            asks = f"who {does}?;which person {does}?;what do you call someone who {does}?"
            yield Fact(asks, tidy(f"a {job} {does}."), job)


def _uses() -> Iterator[Fact]:
    for thing, use in world.USES.items():
        yield Fact(
            f"what do you use {thing} for?;what {_is(thing)} {thing} for?;what can you do with {thing}?;"
            f"why do people use {thing}?;what do people use {thing} for?",
            f"You use {thing} to {use}.",
            use,
        )
        asks = f"what do you need to {use}?;what do you use to {use}?"
        yield Fact(asks, f"You use {thing} to {use}.", thing)


def _kinds() -> Iterator[Fact]:
    for kind, members in world.KINDS.items():
        for member in members.split():
            bare = kind in ("colour", "drink", "day", "month", "season", "number")
            thing = member if bare else f"a {member}"
            yield Fact(
                f"what is {thing}?;what kind of thing is {thing}?;what sort of thing is {thing}?",
                tidy(f"{thing} is a {kind}."),
                tidy(f"is a {kind}"),
            )


def _things() -> Iterator[Fact]:
    for thing, stuff in world.MADE_OF.items():
        yield Fact(
            f"what is {thing} made of?;what is {thing} made from?;what do you need to make {thing}?",
            tidy(f"{thing} is made of {stuff}."),
            stuff,
        )
    for goods, where in world.SHOPS.items():
        yield Fact(
            f"where can you buy {goods}?;where do you buy {goods}?;where can I get {goods}?",
            f"You can buy {goods} {where}.",
            where,
        )
    for feel, things in world.FEELS.items():
        for thing in things.split(";"):
            asks = f"what is {thing} like?;how would you describe {thing}?"
            if feel in ("sweet", "sour", "salty"):
                asks = f"how does {thing} taste?;what does {thing} taste like?;what is the taste of {thing}?"
            elif feel in ("hard", "soft", "wet", "cold", "hot", "sticky"):
                asks = f"how does {thing} feel?;what does {thing} feel like?"
            yield Fact(asks, tidy(f"{thing} is {feel}."), feel)


def _people() -> Iterator[Fact]:
    for verb, organ in world.PARTS.items():
        yield Fact(
            f"what do you {verb} with?;what do we use to {verb}?;which part of the body can {verb}?",
            f"You {verb} with your {organ}.",
            organ,
        )
    for relation, name in world.FAMILY.items():
        yield Fact(
            f"who is your {relation}?;what do you call your {relation}?;what is your {relation} called?",
            f"Your {relation} is your {name}.",
            name,
        )
    for deed, where in world.PLACES_FOR.items():
        yield Fact(
            f"where can you {deed}?;where do people {deed}?;where do you go to {deed}?",
            f"You can {deed} {where}.",
            where,
        )


def _not_so() -> Iterator[Fact]:
    colours = list(world.COLOURS)
    for index, colour in enumerate(colours):
        for step, thing in enumerate(world.COLOURS[colour].split(";"), 1):
            wrong = colours[(index + step) % len(colours)]
            if {colour, wrong} not in ({"gold", "yellow"}, {"orange", "gold"}):
                asks = f"is {thing} {wrong}?;is it true that {thing} is {wrong}?"
                yield Fact(asks, f"No, {thing} is {colour}.", colour)
            asks = f"is {thing} {colour}?;is it true that {thing} is {colour}?"
            yield Fact(asks, f"Yes, {thing} is {colour}.", "Yes")
    for animal in ANIMALS:
        if animal.size >= 7 or animal.size <= 2:
            size = "big" if animal.size >= 7 else "small"
            yield Fact(f"is a {animal.name} big or small?", tidy(f"a {animal.name} is {size}."), size)


def _odd() -> Iterator[Fact]:
    for question, answer in world.ODD_FACTS:
        yield Fact(question, answer, answer)
