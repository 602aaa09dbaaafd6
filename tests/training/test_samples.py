"""Samples say what the model says, and leave training as it was."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from loralab.data.templates import choose_template
from loralab.data.types import Message
from loralab.errors import ConfigError
from loralab.models import load_base
from loralab.serving.generate import Habits, Sampling, stream
from loralab.training.config import RunConfig
from loralab.training.events import Stepped
from loralab.training.samples import Prompt, Sampler, read_prompts
from loralab.training.starting import start


def test_a_text_has_a_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("Where?\n\n  Why? \r\nHow?\n")
    assert read_prompts(path) == [
        Prompt("Where?", f"{path}:1"),
        Prompt("Why?", f"{path}:3"),
        Prompt("How?", f"{path}:4"),
    ]


def test_a_list_has_texts_and_conversations(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    path.write_text(json.dumps(["Where?", turns]))
    first, second = read_prompts(path)
    assert first.asked == "Where?"
    assert second.asked == (Message("system", "Be brief."), Message("user", "Why?"))
    assert second.text == "system: Be brief.\nuser: Why?"


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("p.txt", "\n\n", "no prompt in it"),
        ("p.txt", "a\nb\na\n", r"p\.txt:3: the same prompt as .*p\.txt:1"),
        ("p.json", "{", "not valid JSON"),
        ("p.json", '{"a": 1}', "expected a list of prompts, found an object"),
        ("p.json", '["a", 3]', "prompt 2: expected a text"),
        ("p.json", '[[{"role": "assistant", "content": "a"}]]', "ends with a turn of the user"),
        ("p.json", '[[{"role": "king", "content": "a"}]]', "prompt 1: expected a text"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, file: str, text: str, words: str) -> None:
    path = tmp_path / file
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_prompts(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_prompts(tmp_path / "none.txt")


def test_a_batch_answers_as_chat_does(tiny_dir: Path) -> None:
    base = load_base(str(tiny_dir), "float32")
    questions = ["the cat", "a dog and a bird sat", "one"]
    template = choose_template(base.tokenizer, "plain", "plain")
    sampler = Sampler([Prompt(q, q) for q in questions], base.model, base.tokenizer, template)
    events = sampler.at(7)
    assert [(event.step, event.prompt) for event in events] == [(7, question) for question in questions]
    for event in events:
        said = stream(base.model, base.tokenizer, event.prompt, Habits("completion", "plain"), Sampling(120))
        assert "".join(said).strip() == event.text


def test_raw_text_is_gone_on_from(tiny_dir: Path) -> None:
    base = load_base(str(tiny_dir), "float32")
    (event,) = Sampler([Prompt("the cat", "x")], base.model, base.tokenizer, None).at(0)
    said = stream(base.model, base.tokenizer, "the cat", Habits("text"), Sampling(120))
    assert "".join(said).strip() == event.text
    with pytest.raises(ConfigError, match="p:1: a conversation, but the run is on raw text"):
        Sampler([Prompt((Message("user", "a"),), "p:1")], base.model, base.tokenizer, None)


def test_a_prompt_without_room_is_refused(tiny_dir: Path) -> None:
    base = load_base(str(tiny_dir), "float32")
    with pytest.raises(ConfigError, match=r"p:1: the prompt has \d+ tokens .* no room to answer"):
        Sampler([Prompt("the cat " * 400, "p:1")], base.model, base.tokenizer, None)


def test_a_run_is_the_same_with_and_without(settings: Callable[..., RunConfig]) -> None:
    """To the bit, with dropout, which draws random numbers."""
    written = []
    for name in ("without", "with"):
        run = start(settings(name=name, lora_dropout=0.2))
        template = choose_template(run.base.tokenizer, "plain", run.data.template)
        sampler = Sampler([Prompt("the cat", "x")], run.model, run.base.tokenizer, template)
        seen = []
        for event in run.events():
            if isinstance(event, Stepped) and name == "with":
                state, modes = torch.get_rng_state(), [m.training for m in run.model.modules()]
                seen.append(sampler.at(event.step)[0].text)
                assert torch.equal(torch.get_rng_state(), state)
                assert [m.training for m in run.model.modules()] == modes
        written.append((run.folder.adapter / "adapter_model.safetensors").read_bytes())
    assert written[0] == written[1]
    assert len(set(seen)) > 1, "the adapter changed nothing that is said"


def test_the_bundled_prompts_can_be_read(tiny: SimpleNamespace) -> None:
    from loralab.models import demo

    assert len(read_prompts(demo.PROMPTS)) == 3
