"""What an adapter keeps of how its training data was written."""

from typing import TYPE_CHECKING

from loralab.adapters.habits import Habits
from loralab.data import formats, templates
from loralab.data.dataset import Dataset
from loralab.data.golden import golden_ids, template_digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["habits_of", "template_of"]


def habits_of(data: Dataset, tokenizer: "PreTrainedTokenizerFast") -> Habits:
    """Return how an adapter that is trained on `data` is to be spoken to.

    Raises:
        ConfigError: the file of the template or of the formats cannot be read.
    """
    template = template_of(data, tokenizer)
    if template is None:
        return Habits(data.format, golden=golden_ids(None, tokenizer))
    prompt = formats.get(data.format).prompt if formats.is_file(data.format) else ()
    return Habits(
        data.format,
        data.template,
        template_sha256=template_digest(template),
        golden=golden_ids(template, tokenizer),
        jinja=templates.read_jinja(data.template) if templates.is_file(data.template) else "",
        prompt=prompt,
    )


def template_of(data: Dataset, tokenizer: "PreTrainedTokenizerFast") -> templates.Template | None:
    """Return the template that writes as the data was written; None for documents, which have none."""
    if data.template == "none":
        return None
    return templates.choose_template(tokenizer, "plain", data.template)
