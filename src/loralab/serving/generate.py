"""Text from a model, piece by piece as it is written."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from threading import Event, Thread
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteriaList, TextIteratorStreamer

from loralab.adapters.habits import Habits
from loralab.data.encode import encode_prompt, stop_ids
from loralab.data.formats import get as get_format
from loralab.data.templates import Template, choose_template, from_jinja
from loralab.data.types import Message
from loralab.errors import ConfigError
from loralab.models.positions import max_positions
from loralab.models.stops import own_stops
from loralab.serving.sampling import Sampling

__all__ = ["Sampling", "continue_text", "prompt_ids", "stream", "template_for"]


def template_for(habits: Habits, tokenizer: Any) -> Template | None:
    """Return the template for an adapter's prompts; None where text is continued as it stands."""
    if habits.format == "text":
        return None
    if habits.jinja:
        return from_jinja(tokenizer, habits.jinja, habits.template)
    if habits.template in ("auto", "tokenizer") and not tokenizer.chat_template:
        return (
            None
            if habits.format == "auto"
            else choose_template(tokenizer, get_format(habits.format).template)
        )
    return choose_template(tokenizer, "plain", habits.template)


def stream(
    model: Any, tokenizer: Any, prompt: str | Sequence[Message], habits: Habits, sampling: Sampling
) -> Iterator[str]:
    """Yield the model's answer in pieces; `prompt_ids` says what becomes of the prompt.

    Raises:
        ConfigError: the prompt leaves no room for an answer.
    """
    ids, stops = prompt_ids(tokenizer, prompt, habits)
    return continue_text(model, tokenizer, ids, stops, sampling)


def prompt_ids(
    tokenizer: Any,
    prompt: str | Sequence[Message],
    habits: Habits,
    tools: Sequence[Mapping[str, object]] = (),
) -> tuple[Sequence[int], list[int]]:
    """Return a prompt as an adapter's training data would have it, and the tokens that end the answer.

    Text is put into the template as a user's turn. What a user says is put into the prompts of the format
    file, if the adapter was trained with one. Where there is no template, text is continued as it stands, of
    a conversation the last message.

    Raises:
        ConfigError: there are tools, and no template that could show them.
        DataError: the template cannot write this conversation.
    """
    template = template_for(habits, tokenizer)
    if template is None and tools:
        raise ConfigError("tools need a template, and this model has none.")
    if template is not None and isinstance(prompt, str):
        prompt = [Message("user", prompt)]
    elif template is None and not isinstance(prompt, str):
        prompt = prompt[-1].content
    if habits.prompt and not isinstance(prompt, str):
        prompt = [_asked(message, habits.prompt) for message in prompt]
    stops = stop_ids(template, tokenizer) if template else [tokenizer.eos_token_id]
    return encode_prompt(prompt, template, tokenizer, tools), [stop for stop in stops if stop is not None]


def _asked(message: Message, prompt: Sequence[str]) -> Message:
    return replace(message, content=message.content.join(prompt)) if message.role == "user" else message


def continue_text(
    model: Any, tokenizer: Any, ids: Sequence[int], stops: Sequence[int], sampling: Sampling
) -> Iterator[str]:
    """Yield the continuation of the token ids, up to a stop token, in pieces of text.

    Closing the generator ends the writing: the model is at rest when `close` returns.

    Raises:
        ConfigError: the prompt leaves no room for an answer, or only an `Engine` can do what is asked.
    """
    if sampling.stop or sampling.logprobs is not None or sampling.ignore_eos:
        raise ConfigError("stop, logprobs and ignore_eos are for an Engine; here they would have no effect.")
    positions = max_positions(model.config)
    room = (
        sampling.max_new_tokens if positions is None else min(sampling.max_new_tokens, positions - len(ids))
    )
    if room < 1:
        raise ConfigError(
            f"the prompt has {len(ids)} tokens and the model {positions} positions: no room to answer."
        )
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    input_ids = torch.tensor([list(ids)], device=model.device)
    choice: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if sampling.temperature > 0:
        choice = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p}
        choice["top_k"] = sampling.top_k
    failure: list[BaseException] = []
    closed = Event()

    def is_closed(ids_BT: Tensor, scores: Tensor, **_: Any) -> Tensor:
        return torch.full((ids_BT.shape[0],), closed.is_set(), device=ids_BT.device)

    def work() -> None:
        try:
            if sampling.seed is not None:
                torch.manual_seed(sampling.seed)
            model.generate(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                max_new_tokens=room,
                eos_token_id=sorted({*stops, *own_stops(model)}) or None,
                pad_token_id=tokenizer.pad_token_id,
                streamer=streamer,
                stopping_criteria=StoppingCriteriaList([is_closed]),
                **choice,
            )
        except BaseException as error:  # handed to the reader below
            failure.append(error)
            streamer.end()

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        yield from streamer
    finally:
        closed.set()
        thread.join()
    if failure:
        raise failure[0]
