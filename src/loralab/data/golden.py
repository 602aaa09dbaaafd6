"""Golden prompts: what the tokenizer and the template of a training run made of fixed texts.

Their ids are kept with the adapter. Where they come out otherwise, the adapter sees other prompts than it was
trained on, which nothing else would show.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from loralab.data.encode import encode_prompt
from loralab.data.findings import Code, Finding
from loralab.data.templates import Template
from loralab.data.templates._rendered import Rendered
from loralab.data.types import Message
from loralab.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["CODES", "compare_golden", "golden_ids", "template_digest"]

TOKENIZER = Code(
    "A301",
    "warning",
    "the tokenizer is not the one that the adapter was trained with: it makes other tokens of the same text",
    "load the base, of the revision, that the adapter's README.md names",
)
TEMPLATE = Code(
    "A302",
    "warning",
    "the template, or a mark of it, is not the one that the adapter was trained with",
    "load the base, of the revision, that the adapter's README.md names, or train anew",
)
CODES = (TOKENIZER, TEMPLATE)

# Adapters keep the ids under these names, so what stands here never changes; another probe gets another name.
_TEXT = 'The 3 cafés opened at 7:45,\n\twith  "naïve" prices: 12,345.60 €.\n\n日本 <b>it\'s</b> 🙂\n'
_QUESTION = (Message("user", "What is 2 + 2?"),)
_CONVERSATION = (
    Message("system", "Answer in one word."),
    *_QUESTION,
    Message("assistant", "Four."),
    Message("user", "And\n3 + 3?"),
)


def golden_ids(template: Template | None, tokenizer: "PreTrainedTokenizerFast") -> dict[str, list[int]]:
    """Return the ids of the prompts by name: of a text, and if there is a template, of conversations.

    Those that the template refuses are left out, and all if it reads the clock.
    """
    found = {"text": encode_prompt(_TEXT, None, tokenizer)}
    if template is None or _reads_the_clock(template):
        return found
    for name, messages in (("question", _QUESTION), ("conversation", _CONVERSATION)):
        try:
            found[name] = encode_prompt(messages, template, tokenizer)
        except DataError:
            continue
    return found


def template_digest(template: Template) -> str:
    """Return the sha256 of a template in Jinja, or of what another one writes."""
    text = template.source if isinstance(template, Rendered) else template.prompt_text(_CONVERSATION)
    return hashlib.sha256(text.encode()).hexdigest()


def compare_golden(
    golden: Mapping[str, Sequence[int]], template: Template | None, tokenizer: "PreTrainedTokenizerFast"
) -> Finding | None:
    """Return what differs from the golden ids that an adapter was kept with, or None."""
    found = golden_ids(template, tokenizer)
    other = [name for name, ids in golden.items() if name in found and list(ids) != found[name]]
    if "text" in other:
        return TOKENIZER.found(
            "the tokenizer is not the one that the adapter was trained with: "
            + _where(golden["text"], found["text"], tokenizer)
        )
    if other:
        return TEMPLATE.found(
            "the template is not the one that the adapter was trained with: "
            + _where(golden[other[0]], found[other[0]], tokenizer)
        )
    return None


def _where(trained: Sequence[int], found: Sequence[int], tokenizer: "PreTrainedTokenizerFast") -> str:
    pairs = zip(trained, found, strict=False)
    place = next((at for at, (then, now) in enumerate(pairs) if then != now), min(len(trained), len(found)))
    now = repr(tokenizer.decode(list(found[place : place + 1]))) if place < len(found) else "the end"
    then = f"id {trained[place]}" if place < len(trained) else "the end"
    return f"token {place + 1} of a probe is {now}, and was {then}"


def _reads_the_clock(template: Template) -> bool:
    return isinstance(template, Rendered) and "strftime_now" in template.source
