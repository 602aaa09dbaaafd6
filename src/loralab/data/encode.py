"""Text becomes token ids, such that training and generation see the same ids before an answer.

The tokens of a prompt and an answer written in one piece need not begin with the tokens of the prompt: a line
break that ends the one and a line break that begins the other may become one token. So a text grows segment
by segment, each tokenized behind the end of what stands before it. Where the tokens of the two begin with
those of that end, the rest is taken; else the new segment is tokenized by itself.
"""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from loralab.data.templates import Segment, Template
from loralab.data.templates._template import last_answer
from loralab.data.types import Chat, Example, Message, Text
from loralab.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = [
    "encode_chat",
    "encode_chats",
    "encode_prompt",
    "encode_text",
    "encode_texts",
    "end_id",
    "stop_ids",
]

_BEHIND = 32
"""The characters before a segment that it is tokenized with: more than a merge over the border reaches back.
With all of them instead, a conversation of k turns would be tokenized k times."""


def encode_chat(
    chat: Chat, template: Template, tokenizer: "PreTrainedTokenizerFast", source: str = ""
) -> Example:
    """Return the conversation up to its last trained token: answers and their end marks have weight 1.

    The ids before an answer are `encode_prompt(the messages before it, template, tokenizer, the tools)`.

    Raises:
        DataError: the template cannot write this conversation.
    """
    return encode_chats([chat], template, tokenizer, [source])[0]


def encode_chats(
    chats: Sequence[Chat],
    template: Template,
    tokenizer: "PreTrainedTokenizerFast",
    sources: Sequence[str],
    last_only: bool = False,
) -> list[Example]:
    """Return `encode_chat` of each, tokenized in one batch.

    Args:
        last_only: whether the last answer alone is trained.
    """
    written = []
    for chat, source in zip(chats, sources, strict=True):
        try:
            written.append(_write(chat, template, last_only))
        except DataError as error:
            raise DataError(f"{source}: {error}" if source else str(error)) from error
    encoded = zip(_encode(written, tokenizer, last_only=last_only), sources, strict=True)
    return [Example(tuple(ids), tuple(weights), source) for (ids, weights), source in encoded]


def _write(chat: Chat, template: Template, last_only: bool) -> list[Segment]:
    """Return the segments up to the last that is trained; none if nothing is."""
    if last_only and chat.messages[last_answer(chat)].blank:
        return []
    segments = _join(template.render(chat, last_only=last_only))
    while segments and not segments[-1].trained:
        segments.pop()
    return segments


def encode_text(text: Text, tokenizer: "PreTrainedTokenizerFast", source: str = "") -> Example:
    """Return the document between the tokenizer's opening tokens and its end of sequence, all of it trained.

    Of a blank document nothing is trained; an opening or end that the text has already is not doubled.
    """
    return encode_texts([text], tokenizer, [source])[0]


def encode_texts(
    texts: Sequence[Text],
    tokenizer: "PreTrainedTokenizerFast",
    sources: Sequence[str],
    add_bos: bool = True,
    add_eos: bool = True,
) -> list[Example]:
    """Return `encode_text` of each, tokenized in one batch.

    Args:
        add_bos: whether to begin with the tokenizer's opening tokens; without, a text that begins with them
            keeps them.
        add_eos: whether to end with the end of sequence.

    Raises:
        ConfigError: what is not to be added is what this tokenizer does not have.
    """
    opening = _opening(tokenizer)
    end = tokenizer.eos_token_id
    for wanted, there_is, name in ((add_bos, opening, "add_bos"), (add_eos, end is not None, "add_eos")):
        if not wanted and not there_is:
            raise ConfigError(f"{name} false has no effect: this tokenizer has no such token; leave it out.")
    examples = []
    batch = _tokenize([text.text for text in texts], tokenizer)
    for text, ids, source in zip(texts, batch, sources, strict=True):
        opened = _open(ids, opening) if add_bos else list(ids)
        if add_eos and end is not None and opened[-1:] != [end]:
            opened = [*opened, end]
        # The first token has nothing before it to be predicted from.
        given = max(len(opening) if add_bos else 0, 1) if text.text.strip() else len(opened)
        weights = [0.0] * given + [1.0] * (len(opened) - given)
        examples.append(Example(tuple(opened), tuple(weights[: len(opened)]), source))
    return examples


def encode_prompt(
    prompt: str | Sequence[Message],
    template: Template | None,
    tokenizer: "PreTrainedTokenizerFast",
    tools: Sequence[Mapping[str, object]] = (),
) -> list[int]:
    """Return the ids to generate from: of a text as it stands, or of the messages that want an answer.

    Args:
        template: how the messages are written; a text needs none.
        tools: the functions that the answer may call.

    Raises:
        ConfigError: messages without a template.
        DataError: the template cannot write this conversation.
    """
    if isinstance(prompt, str):
        segments = [Segment(prompt, False)]
    elif template is None:
        raise ConfigError("messages need a template to become a prompt; a text needs none.")
    else:
        segments = _join(template.segments(prompt, ask=True, tools=tools))
    return _encode([segments], tokenizer)[0][0]


def end_id(template: Template, tokenizer: "PreTrainedTokenizerFast") -> int | None:
    """Return the token that ends every answer, None if answers end in text that generation goes on from."""
    probe = encode_chat(Chat((Message("user", "a"), Message("assistant", "b"))), template, tokenizer)
    last = probe.ids[-1]
    return last if last in tokenizer.added_tokens_decoder or last == tokenizer.eos_token_id else None


def stop_ids(template: Template, tokenizer: "PreTrainedTokenizerFast") -> list[int]:
    """Return the ids at which generation ends: end of sequence, and the template's mark if it is a token."""
    found = {end_id(template, tokenizer), tokenizer.eos_token_id}
    return sorted(token for token in found if token is not None)


def _join(segments: Sequence[Segment]) -> list[Segment]:
    """Join neighbours that are not trained. Answers stay apart, as each begins where a prompt ends."""
    joined: list[Segment] = []
    for segment in segments:
        if not segment.text:
            continue
        if joined and not joined[-1].trained and not segment.trained:
            segment = Segment(joined.pop().text + segment.text, False)
        joined.append(segment)
    return joined


def _encode(
    written: Sequence[Sequence[Segment]], tokenizer: "PreTrainedTokenizerFast", *, last_only: bool = False
) -> list[tuple[list[int], list[float]]]:
    """Return ids and weights of each list of segments; with `last_only` of the last segment's alone."""
    texts = [text for segments in written for pair in _pairs(segments) for text in pair]
    batch = iter(_tokenize(texts, tokenizer))
    opening = _opening(tokenizer)
    encoded = []
    for segments in written:
        ids: list[int] = []
        weights: list[float] = []
        for segment in segments:
            before, both = next(batch), next(batch)
            aligned = both[: len(before)] == before
            new = both[len(before) :] if aligned else _tokenize_inside(segment.text, tokenizer)
            ids += new
            trained = segment.trained and (not last_only or segment is segments[-1])
            weights += [float(trained)] * len(new)
        opened = _open(ids, opening)
        weights = [0.0] * (len(opened) - len(ids)) + weights
        weights[:1] = [0.0] * len(weights[:1])
        encoded.append((opened, weights))
    return encoded


def _pairs(segments: Sequence[Segment]) -> list[tuple[str, str]]:
    """Return for each segment the end of what stands before it, and the same with the segment behind it."""
    pairs = []
    before = ""
    for segment in segments:
        pairs.append((before, before + segment.text))
        before = (before + segment.text)[-_BEHIND:]
    return pairs


def _tokenize(texts: Sequence[str], tokenizer: "PreTrainedTokenizerFast") -> list[list[int]]:
    """Return the ids of each text; those of equal texts are one list."""
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        return []
    found = tokenizer(
        distinct,
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    ids = dict(zip(distinct, found["input_ids"], strict=True))
    return [ids[text] for text in texts]


def _tokenize_inside(text: str, tokenizer: "PreTrainedTokenizerFast") -> list[int]:
    """Return the tokens of a text that goes on from another one.

    SentencePiece sets a space before a text; behind a line break, where the text is not the first thing, it
    does not.
    """
    before, both, alone = _tokenize(["\n", "\n" + text, text], tokenizer)
    return both[len(before) :] if both[: len(before)] == before else alone


def _opening(tokenizer: "PreTrainedTokenizerFast") -> list[int]:
    """Return the ids that the tokenizer sets before every text, such as the beginning-of-sequence token."""
    found = tokenizer("a", return_special_tokens_mask=True)
    pairs = zip(found["input_ids"], found["special_tokens_mask"], strict=True)
    return [token for token, _ in takewhile(lambda pair: pair[1], pairs)]


def _open(ids: list[int], opening: list[int]) -> list[int]:
    return ids if ids[: len(opening)] == opening else opening + ids
