"""Whether prompts are written alike in training, in use, and by other servers."""

from collections.abc import Iterator, Sequence

from loralab.data.checks._given import Given, Table, share
from loralab.data.encode import encode_prompt
from loralab.data.findings import Code, Finding
from loralab.data.templates import Template
from loralab.data.types import Chat, Message
from loralab.errors import DataError

UNSTABLE = Code(
    "D131",
    "note",
    "the chat template writes earlier turns differently once more turns follow",
    "conversations of several answers need --train-on last-answer, or --template chatml",
)
DIFFERENT = Code(
    "D132",
    "error",
    "prompts are not what serving will write for the same messages",
    "choose another template, as --template chatml, and report the row: this should not be",
)
ELSEWHERE = Code(
    "D133",
    "note",
    "servers that use the tokenizer's chat template alone will write prompts differently",
    "serve with loralab, or compare the beginning-of-sequence token of the two",
)
DOUBLE = Code(
    "D134",
    "warning",
    "examples begin with two beginning-of-sequence tokens",
    "take the token out of the texts, or out of the chat template",
)
SPELLED = Code(
    "D135",
    "note",
    "marks of the template are no tokens of the tokenizer, so they are spelled out",
    "choose the template that the base was trained with, or --template alpaca, which is plain text",
)
CODES = (UNSTABLE, DIFFERENT, ELSEWHERE, DOUBLE, SPELLED)

_ASKED = (Message("user", "What is 2 + 2?"),)
_TURNS = (
    *_ASKED,
    Message("assistant", "It is 4."),
    Message("user", "And 3 + 3?"),
    Message("assistant", "6."),
)


def check(given: Given) -> Iterator[Finding]:
    """Write a conversation in every way in which it will be written, and compare."""
    if given.template is not None:
        if given.template.missing:
            marks = ", ".join(given.template.missing)
            yield SPELLED.found(f"template {given.template.name!r} has marks that are no tokens: {marks}")
        yield from _probe(given, given.template)
        yield from _rows(given, given.template)
    yield from _double(given.train, given.tokenizer.bos_token_id)


def _probe(given: Given, template: Template) -> Iterator[Finding]:
    try:
        whole = "".join(segment.text for segment in template.segments(_TURNS, ask=False))
        asked = template.prompt_text(_TURNS[:3])
    except DataError as error:
        yield UNSTABLE.found(f"template {template.name!r} cannot write two turns in a row: {error}")
        return
    if not whole.startswith(asked):
        yield UNSTABLE.found(f"template {template.name!r} writes a turn differently once more turns follow")
    if template.name == "tokenizer":
        turns = [{"role": message.role, "content": message.content} for message in _ASKED]
        found = given.tokenizer.apply_chat_template(
            turns, tokenize=True, add_generation_prompt=True, return_dict=False
        )
        ours = encode_prompt(_ASKED, template, given.tokenizer)
        if list(found) != ours:
            names = given.tokenizer.convert_ids_to_tokens
            yield ELSEWHERE.found(
                f"training begins a prompt with {names(ours[:2])}, the tokenizer's chat template alone with "
                f"{names(list(found)[:2])}"
            )


def _rows(given: Given, template: Template) -> Iterator[Finding]:
    """Hold the examples of the conversations to what `encode_prompt` makes of their first question."""
    if not given.conversations:
        return
    numbers = {source: number for number, source in enumerate(given.train.sources())}
    wrong = []
    for source, chat in given.conversations:
        number = numbers.get(source)
        if number is not None and not _alike(given, template, chat, number):
            wrong.append(number)
    if wrong:
        text = f"{share(len(wrong), len(given.conversations))} rows that were compared have other prompts"
        yield DIFFERENT.found(f"{text} than serving writes", len(wrong), given.train.sources(wrong))


def _alike(given: Given, template: Template, chat: Chat, number: int) -> bool:
    start, end = given.train.starts_N[number], given.train.prompt_ends_N[number]
    shown: list[int] = given.train.ids_T[start:end].tolist()
    return any(
        encode_prompt(before, template, given.tokenizer, chat.tools) == shown
        for before in _questions(chat.messages)
    )


def _questions(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """Yield what stands before each answer: the first trained one need not be the first."""
    for index, message in enumerate(messages):
        if message.role == "assistant":
            yield messages[:index]


def _double(train: Table, opening: int | None) -> Iterator[Finding]:
    if opening is None or not len(train):
        return
    second_N = train.ids_T[(train.starts_N + 1).clip(max=len(train.ids_T) - 1)]
    double = ((train.ids_T[train.starts_N] == opening) & (second_N == opening)).nonzero()[0]
    if len(double):
        text = f"{share(len(double), len(train))} examples begin with two beginning-of-sequence tokens"
        yield DOUBLE.found(text, len(double), train.sources(double))
