"""Stories, and the documents that the demo base is pretrained on."""

import random
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import cast
from facts import Fact, fact_groups, questions
from grammar import fill, listed, tidy, words
from plot import Plot
from plots_at_home import AT_HOME
from plots_outside import OUTSIDE
from world import ANIMALS, KINDS

PLOTS = AT_HOME + OUTSIDE
ENDINGS = (
    "It was a good day.", "They were all happy.", "That night, {A} slept very well.", "What a day it was!",
    "{A} never forgot that day.", "And they lived happily ever after.", "The end.",
    "{A} smiled all the way home.",
    "In the evening the stars came out, and all was quiet.", "{A} told everyone about it.",
)  # fmt: skip

MIDDAYS = (
    "It was a {weather} day.", "The day was {weather}.", "The morning was {weather}.",
    "It was {weather} outside.",
)  # fmt: skip
WEATHERS = words("sunny warm cold windy bright cool cloudy quiet")

SYSTEM_PROMPT = "[You are a helpful assistant.|Answer in short sentences.|You are a friendly little model.]"
STORY_REQUEST = (
    "[Tell me|Write|Please tell me|Can you tell me|I would like] a [short |little |]story about a {kind}"
    "[.|, please.]"
)

Messages = list[dict[str, str]]


class Document(NamedTuple):
    """A plain text, or a chat: the other field is empty."""

    text: str
    messages: Messages


def documents(count: int, seed: int) -> Iterator[Document]:
    """Yield `count` documents: stories, chats and plain facts. The same seed gives the same documents."""
    rng = random.Random(seed)
    groups = fact_groups()
    for _ in range(count):
        draw = rng.random()
        if draw < 0.36:
            yield Document(story(rng), [])
        elif draw < 0.42:
            yield Document(" ".join(_any_fact(rng, groups).answer for _ in range(rng.randint(2, 6))), [])
        else:
            yield Document("", _chat(rng, groups))


def story(rng: random.Random, about: str = "", short: bool = False) -> str:
    """Return a story, about an animal of the kind `about` if one is named."""
    plots = [plot for plot in PLOTS if not about or "animal" in plot.who]
    plot = rng.choice(plots)
    who = "animal" if about else rng.choice(plot.who.split())
    hero = _hero(rng, who, about)
    while not hero["enter"] and "{A}" not in plot.lines[0]:
        hero = _hero(rng, who, about)
    slots = hero | cast.helper(rng, hero) | cast.friend(rng, hero) | cast.beast(rng, hero) | _draw(rng, plot)
    slots["weather"] = rng.choice(WEATHERS)
    lines = [slots["enter"]]
    if not short and rng.random() < 0.25:
        lines.append(rng.choice(MIDDAYS))
    keep = 0.1 if short else 0.65
    told = (line for line in plot.lines if not line.startswith("?") or rng.random() < keep)
    lines += [line.removeprefix("?") for line in told]
    if rng.random() < 0.4:
        lines.append(rng.choice(ENDINGS))
    return " ".join(filter(None, (fill(rng, line, slots) for line in _with_pronouns(rng, lines))))


def is_held_out(question: str) -> bool:
    """Whether a question is kept out of the pretraining text, to measure what was learned: one in 25."""
    return zlib.crc32(question.encode()) % 25 == 0


def _hero(rng: random.Random, who: str, about: str) -> dict[str, str]:
    if who == "animal":
        return cast.animal(rng, about)
    return cast.child(rng) if who == "child" else cast.pair(rng)


def _draw(rng: random.Random, plot: Plot) -> dict[str, str]:
    drawn: dict[str, str] = {}
    for names, options in plot.draws.items():
        drawn |= zip(names.split(","), rng.choice(options.split(";")).split("/"), strict=True)
    return drawn


def _with_pronouns(rng: random.Random, lines: list[str]) -> Iterator[str]:
    """Yield the lines; where two in a row begin with the hero, the second may say "he" or "she" instead."""
    before = ""
    for line in lines:
        again = line.startswith("{A} ") and before.startswith("{A} ")
        yield line.replace("{A}", "{he}", 1) if again and rng.random() < 0.7 else line
        before = line


def _any_fact(rng: random.Random, groups: list[list[Fact]]) -> Fact:
    return rng.choice(rng.choice(groups))


def _turn(user: str, assistant: str) -> Messages:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def _chat(rng: random.Random, groups: list[list[Fact]]) -> Messages:
    messages: Messages = []
    if rng.random() < 0.08:
        messages.append({"role": "system", "content": fill(rng, SYSTEM_PROMPT, {})})
    for _ in range(rng.choice((1, 1, 2, 3))):
        draw = rng.random()
        if draw < 0.76:
            messages += _question(rng, groups)
        elif draw < 0.84:
            messages += _story_request(rng)
        elif draw < 0.93:
            messages += _copying(rng)
        else:
            messages += _small_talk(rng)
    return messages


def _question(rng: random.Random, groups: list[list[Fact]]) -> Messages:
    while True:
        fact = _any_fact(rng, groups)
        question = rng.choice(questions(fact))
        if not is_held_out(question):
            return _turn(_spoken(rng, question), fact.answer)


def _spoken(rng: random.Random, question: str) -> str:
    """Return a question as somebody might say it: sometimes after a polite word or two."""
    if rng.random() < 0.85:
        return question
    start = fill(rng, "[Please tell me.|Hello!|I have a question.|Tell me, please.|Quick question.]", {})
    return f"{start} {question}"


def _story_request(rng: random.Random) -> Messages:
    about = rng.choice(cast.HEROES)
    question = fill(rng, STORY_REQUEST, {"kind": about})
    if question.startswith("Can"):
        question = question.rstrip(".") + "?"
    return _turn(question, story(rng, about, short=True))


def _copying(rng: random.Random) -> Messages:
    """Return turns whose answer is found in the question: they teach looking back and spelling."""
    word = _made_up(rng)
    draw = rng.randrange(5)
    if draw == 0:
        ask = fill(rng, "[Say|Repeat|Please say|Write] the word {word}.", {"word": word})
        return _turn(ask, f"The word is {word}.")
    if draw == 1:
        name = tidy(word)
        reply = f"Hello, {name}! Nice to meet you."
        ask = rng.choice((f"My name is {name}.", f"Hello, I am {name}.", f"Hi! I am called {name}."))
        return _turn(ask, reply) + _turn("What is my name?", f"Your name is {name}.")
    if draw == 2:
        return _turn(f"How do you spell {word}?", f"You spell {word} like this: {'-'.join(word)}.")
    if draw == 3:
        ask = rng.choice((f"Put quotes around {word}.", f"Write {word} in quotes."))
        return _turn(ask, f'"{word}"')
    kind = rng.choice(("fruit", "vegetable", "colour", "toy", "tree", "drink", "flower"))
    members = rng.sample(KINDS[kind].split(), 3)
    return _turn(f"Name three kinds of {kind}.", tidy(listed(members)) + ".")


def _made_up(rng: random.Random) -> str:
    """Return a word that may not exist: most are syllables, some any letters."""
    if rng.random() < 0.3:
        return rng.choice([animal.name for animal in ANIMALS])
    if rng.random() < 0.3:
        return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 6)))
    starts = words("b c d f g h j k l m n p r s t v w y z bl br cr dr fl gr pl sh st th tr")
    ends = ("", "", "n", "r", "s", "t", "l", "ck", "rr", "sh", "y", "m", "ng")
    parts = rng.randint(1, 3)
    return "".join(rng.choice(starts) + rng.choice("aeiou") for _ in range(parts)) + rng.choice(ends)


def _small_talk(rng: random.Random) -> Messages:
    table = (
        ("[Hello!|Hi!|Good morning!|Hello there!|Hey!]", "Hello! How can I help you?"),
        ("[How are you?|How do you do?|How are you today?]", "I am fine, thank you."),
        ("[Who are you?|What are you?|What is your name?]", "I am a very small language model."),
        ("[Thank you!|Thanks!|Thank you very much.]", "You are welcome."),
        ("[Goodbye!|Bye!|See you later!|Good night!]", "Goodbye! See you soon."),
        ("[What can you do?|How can you help me?]", "I can answer easy questions and tell short stories."),
    )
    ask, reply = rng.choice(table)
    return _turn(fill(rng, ask, {}), reply)
