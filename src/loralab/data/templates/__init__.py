"""How a conversation is written as text, and which parts of that text are trained.

One file a named template, and the folder is the registry: a module with a class `Layout`. Beside them there
are the tokenizer's own chat template and a user's ``.jinja`` file.
"""

import importlib
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING

from loralab.data.templates._rendered import Rendered
from loralab.data.templates._template import Segment, Template
from loralab.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = [
    "TEMPLATES",
    "Segment",
    "Template",
    "choose_template",
    "from_jinja",
    "is_file",
    "names",
    "read_jinja",
]


def names() -> list[str]:
    """Return the names of the templates in this folder, sorted: "llama-3" is `llama_3.py`."""
    found = (info.name for info in pkgutil.iter_modules(__path__))
    return sorted(name.replace("_", "-") for name in found if not name.startswith("_"))


TEMPLATES = ("auto", "tokenizer", *names())
"""The names that `choose_template` knows; the path of a ``.jinja`` file is another."""

_FIXED = "bare"
"""The template of formats that write the text of a prompt themselves: another would write around it."""


def choose_template(
    tokenizer: "PreTrainedTokenizerFast", format_template: str, name: str = "auto"
) -> Template:
    """Return the template of that name.

    Args:
        format_template: the name to take for "auto" when the tokenizer has no chat template of its own.
        name: "auto", "tokenizer" (its own chat template), one of this folder, or a ``.jinja`` file.

    Raises:
        ConfigError: there is no such template, the tokenizer has none of its own, or the data needs another.
        ModelError: the template needs an end-of-sequence token, and the tokenizer has none.
    """
    if format_template == _FIXED:
        if name not in ("auto", _FIXED):
            raise ConfigError(
                f"template {name!r} has no effect: the format file says how the text of a prompt is written; "
                "leave the template at 'auto'."
            )
        name = _FIXED
    if name == "auto":
        name = "tokenizer" if tokenizer.chat_template else format_template
    if name == "tokenizer":
        if not tokenizer.chat_template:
            raise ConfigError(f"this tokenizer has no chat template; choose one of {', '.join(names())}.")
        return Rendered(tokenizer)
    if is_file(name):
        return from_jinja(tokenizer, read_jinja(name), name)
    if name not in TEMPLATES:
        raise ConfigError(
            f"unknown template {name!r}; known are {', '.join(TEMPLATES)}, and the path of a .jinja file."
            f"{did_you_mean(name, TEMPLATES)}"
        )
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    layout: Template = module.Layout(name, tokenizer)
    return layout


def is_file(name: str) -> bool:
    """Return whether `name` is that of a file of Jinja, whose contents the examples depend on."""
    return name.lower().endswith(".jinja")


def read_jinja(name: str) -> str:
    """Return the text of a ``.jinja`` file.

    Raises:
        ConfigError: it cannot be read, or there is nothing in it.
    """
    try:
        text = Path(name).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"template {name}: no such file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"template {name}: cannot be read ({error}).") from None
    if not text.strip():
        raise ConfigError(f"template {name}: the file is empty.")
    return text


def from_jinja(tokenizer: "PreTrainedTokenizerFast", text: str, name: str) -> Template:
    """Return the template that is written in Jinja, as tokenizers have one; `name` is what errors call it.

    Raises:
        ConfigError: it is no Jinja.
    """
    template = Rendered(tokenizer, text, name)
    template.check_syntax()
    return template
