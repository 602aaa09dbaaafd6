"""What a conversation looks like as text, and which of it is trained."""

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from loralab.data.encode import encode_chat, encode_prompt
from loralab.data.templates import Template, choose_template, names
from loralab.data.types import Chat, Message, ToolCall
from loralab.errors import ConfigError, DataError, ModelError

SYSTEM, USER, ANSWER = Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Yes")
MORE, LAST = Message("user", "Sure?"), Message("assistant", "No")
INPUT = Message("user", "Sum up.\n\nLong text.\n\nMore.", "Long text.\n\nMore.")
ASIDE = Message("tool", "7")
TALK = (SYSTEM, USER, ANSWER, MORE, LAST)

LLAMA_3 = (
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}"
    "<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
PHI = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
GEMMA = (
    "{% if messages[0].role == 'system' %}{% set head = messages[0].content | trim + '\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set head = '' %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{% if loop.first %}{{ head }}{% endif %}{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{% if messages[0].role == 'system' %}{% set head = messages[0].content + '\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set head = '' %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{% if m.role == 'user' %}[INST] {% if loop.first %}{{ head }}{% endif %}"
    "{{ m.content }}[/INST]{% else %} {{ m.content | trim }}{{ eos_token }}{% endif %}{% endfor %}"
)
QWEN = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. "
    "You are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% if tools %}{{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}"
    "{% if loop.index0 == 0 or messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user{% endif %}"
    "{{ '\n<tool_response>\n' + m.content }}\n</tool_response>"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>\n{% endif %}"
    "{% else %}<|im_start|>{{ m.role }}{% if m.content %}{{ '\n' + m.content }}{% endif %}"
    "{% for call in m.tool_calls or [] %}{{ '\n<tool_call>\n' }}"
    "{{ {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}{{ '\n</tool_call>' }}"
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PUBLISHED = {"llama-3": LLAMA_3, "phi": PHI, "gemma": GEMMA, "mistral": MISTRAL, "qwen": QWEN}
"""How the models' own templates write a conversation, in Jinja."""
MARKS = [
    *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|system|>", "<|user|>", "<|assistant|>"),
    *("<|end|>", "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]"),
]
LAYOUTS = names()
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = Message("assistant", "", tool_calls=(ToolCall("weather", {"town": "Köln"}, "c1"),))
REPLY = Message("tool", "rain", tool_call_id="c1", name="weather")


@pytest.fixture(scope="module")
def marked(chatml: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A tokenizer with the marks of all families as tokens, which takes line breaks together as theirs do."""
    tokenizer = deepcopy(chatml)
    words = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.add_special_tokens({"extra_special_tokens": MARKS})
    return tokenizer


@pytest.fixture
def altered(chatml: PreTrainedTokenizerFast) -> Iterator[PreTrainedTokenizerFast]:
    """A tokenizer whose chat template and end of sequence a test may change."""
    kept = chatml.chat_template, chatml.eos_token
    yield chatml
    chatml.chat_template, chatml.eos_token = kept


def show(template: Template, *messages: Message) -> str:
    """The text of a conversation with [ ] around what is trained."""
    segments = template.render(Chat(messages))
    return "".join(f"[{segment.text}]" if segment.trained else segment.text for segment in segments)


def test_plain(chatml: PreTrainedTokenizerFast) -> None:
    template = choose_template(chatml, "plain", "plain")
    assert (
        show(template, SYSTEM, USER, ANSWER, MORE, LAST)
        == "Be brief.\nHi\n[Yes<|im_end|>]Sure?\n[No<|im_end|>]"
    )


def test_alpaca(chatml: PreTrainedTokenizerFast) -> None:
    template = choose_template(chatml, "plain", "alpaca")
    assert show(template, USER, ANSWER, MORE, LAST) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.\n\n### Instruction:\nHi\n\n### Response:\n[Yes<|im_end|>]\n\n"
        "### Instruction:\nSure?\n\n### Response:\n[No<|im_end|>]\n\n"
    )
    assert show(template, SYSTEM, USER, ASIDE, ANSWER) == (
        "Be brief.\n\n### Instruction:\nHi\n\n### Tool:\n7\n\n### Response:\n[Yes<|im_end|>]\n\n"
    )


def test_alpaca_sets_the_input_apart(chatml: PreTrainedTokenizerFast) -> None:
    assert show(choose_template(chatml, "alpaca", "alpaca"), INPUT, ANSWER) == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nSum up.\n\n### Input:\nLong text.\n\nMore.\n\n### Response:\n[Yes<|im_end|>]\n\n"
    )


def test_chatml(chatml: PreTrainedTokenizerFast) -> None:
    template = choose_template(chatml, "plain", "chatml")
    assert show(template, SYSTEM, USER, ANSWER) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n[Yes<|im_end|>]\n"
    )


def test_chatml_without_its_mark_ends_turns_with_the_tokenizers_own(gpt2: PreTrainedTokenizerFast) -> None:
    assert show(choose_template(gpt2, "chatml"), USER, ANSWER) == (
        "<|im_start|>user\nHi<|endoftext|>\n<|im_start|>assistant\n[Yes<|endoftext|>]\n"
    )


def test_vicuna(chatml: PreTrainedTokenizerFast) -> None:
    template = choose_template(chatml, "plain", "vicuna")
    assert show(template, SYSTEM, USER, ANSWER, ASIDE, LAST) == (
        "Be brief. USER: Hi ASSISTANT:[ Yes<|im_end|>]TOOL: 7 ASSISTANT:[ No<|im_end|>]"
    )
    assert show(template, USER, ANSWER).endswith(
        "to the user's questions. USER: Hi ASSISTANT:[ Yes<|im_end|>]"
    )


def test_the_tokenizers_own_is_its_text_with_the_answers_marked(chatml: PreTrainedTokenizerFast) -> None:
    template = choose_template(chatml, "plain")
    messages = (SYSTEM, USER, ANSWER, MORE, LAST)
    turns = [{"role": message.role, "content": message.content} for message in messages]
    shown = show(template, *messages)
    assert template.name == "tokenizer"
    assert shown.replace("[", "").replace("]", "") == chatml.apply_chat_template(turns, tokenize=False)
    assert shown.count("[Yes<|im_end|>]\n") == shown.count("[No<|im_end|>]\n") == 1


@pytest.mark.parametrize("name", ["tokenizer", *LAYOUTS])
def test_a_blank_answer_is_not_trained(chatml: PreTrainedTokenizerFast, name: str) -> None:
    template = choose_template(chatml, "plain", name)
    segments = template.render(Chat((USER, Message("assistant", " \n"))))
    assert not any(segment.trained for segment in segments)


said = st.text(alphabet="ab \n.é", max_size=6)
roles = st.sampled_from(["system", "user", "assistant", "assistant"])
talks = st.lists(st.builds(Message, roles, said), min_size=1, max_size=7)


@pytest.mark.parametrize("name", LAYOUTS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=talks)
def test_a_prompt_is_the_text_before_the_answer(
    chatml: PreTrainedTokenizerFast, name: str, messages: list[Message]
) -> None:
    template = choose_template(chatml, "plain", name)
    text, starts = "", []
    for segment in template.render(Chat(tuple(messages))):
        if segment.trained:
            starts.append(text)
        text += segment.text
    answers = [place for place, m in enumerate(messages) if m.role == "assistant" and m.content.strip()]
    assert starts == [template.prompt_text(messages[:place]) for place in answers]


@pytest.mark.parametrize(
    "name", ["tokenizer", "plain", "bare", "alpaca", "chatml", "qwen", "vicuna", "llama-3"]
)
def test_so_it_is_with_tools_turns(chatml: PreTrainedTokenizerFast, name: str) -> None:
    template = choose_template(chatml, "plain", name)
    messages = (INPUT, ANSWER, ASIDE, ASIDE, Message("assistant", "\nYes"), MORE, LAST)
    text, starts = "", []
    for segment in template.render(Chat(messages)):
        if segment.trained:
            starts.append(text)
        text += segment.text
    assert starts == [template.prompt_text(messages[:place]) for place in (1, 4, 6)]


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize(
    "messages", [TALK, TALK[1:], (SYSTEM, USER, ANSWER)], ids=["system", "none", "short"]
)
def test_a_familys_template_is_the_one_it_published(
    marked: PreTrainedTokenizerFast, name: str, messages: tuple[Message, ...]
) -> None:
    template = choose_template(marked, "plain", name)
    turns = [{"role": message.role, "content": message.content} for message in messages]
    written = "".join(segment.text for segment in template.render(Chat(messages)))
    theirs = marked.apply_chat_template(turns, chat_template=PUBLISHED[name], tokenize=False)
    assert written == theirs
    prompt = marked.apply_chat_template(
        turns[:-1], chat_template=PUBLISHED[name], tokenize=False, add_generation_prompt=True
    )
    assert template.prompt_text(messages[:-1]) == prompt
    example = encode_chat(Chat(messages), template, marked)
    assert list(example.ids) == marked(theirs.rstrip())["input_ids"]
    assert encode_prompt(messages[:-1], template, marked) == marked(prompt)["input_ids"]
    assert template.missing == ()


def test_qwen_answers_of_tools_are_one_users_turn(marked: PreTrainedTokenizerFast) -> None:
    messages = (USER, ANSWER, ASIDE, Message("tool", "8"), LAST)
    turns = [{"role": message.role, "content": message.content} for message in messages]
    written = "".join(s.text for s in choose_template(marked, "plain", "qwen").render(Chat(messages)))
    assert written == marked.apply_chat_template(turns, chat_template=QWEN, tokenize=False)
    assert "user\n<tool_response>\n7\n</tool_response>\n<tool_response>\n8\n</tool_response><" in written


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("plain", ()),
        ("vicuna", ()),
        ("chatml", ("<|im_start|>", "<|im_end|>")),
        ("qwen", ("<|im_start|>", "<|im_end|>")),
        ("llama-3", ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
        ("mistral", ("[INST]", "[/INST]")),
    ],
)
def test_marks_that_are_no_tokens_are_told_and_the_end_is_the_tokenizers(
    gpt2: PreTrainedTokenizerFast, name: str, missing: tuple[str, ...]
) -> None:
    template = choose_template(gpt2, "plain", name)
    assert template.missing == missing
    trained = [segment.text for segment in template.render(Chat((USER, ANSWER))) if segment.trained]
    assert [text.strip() for text in trained] == ["Yes<|endoftext|>"]


@pytest.mark.parametrize("name", ["gemma", "mistral", "phi"])
def test_a_template_without_turns_of_tools_says_so(chatml: PreTrainedTokenizerFast, name: str) -> None:
    with pytest.raises(DataError, match=f"template '{name}' has no turns of the tool; take the tokenizer's"):
        choose_template(chatml, "plain", name).render(Chat((USER, ASIDE, ANSWER)))


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("chat", [Chat((USER, CALL, REPLY, ANSWER)), Chat((USER, ANSWER), (WEATHER,))])
def test_a_named_template_refuses_tools(chatml: PreTrainedTokenizerFast, name: str, chat: Chat) -> None:
    with pytest.raises(DataError, match=f"template '{name}' does not write tools and their calls"):
        choose_template(chatml, "plain", name).render(chat)


def test_system_turns_stand_in_the_users_turn_behind_them(chatml: PreTrainedTokenizerFast) -> None:
    template = choose_template(chatml, "plain", "mistral")
    assert show(template, SYSTEM, Message("system", "Now."), USER, ANSWER, SYSTEM, LAST) == (
        "[INST] Be brief.\n\nNow.\n\nHi[/INST][ Yes<|im_end|>][INST] Be brief.[/INST][ No<|im_end|>]"
    )


def test_bare_is_what_is_said_and_the_end(chatml: PreTrainedTokenizerFast) -> None:
    assert show(choose_template(chatml, "plain", "bare"), USER, ANSWER) == "Hi[Yes<|im_end|>]"
    assert choose_template(chatml, "bare").name == "bare"
    with pytest.raises(ConfigError, match="template 'chatml' has no effect: the format file says how"):
        choose_template(chatml, "bare", "chatml")


def test_calls_are_trained_where_the_tokenizers_template_writes_them(
    altered: PreTrainedTokenizerFast,
) -> None:
    altered.chat_template = QWEN
    template = choose_template(altered, "plain")
    chat = Chat((USER, CALL, REPLY, ANSWER), (WEATHER,))
    text = "".join(f"«{s.text}»" if s.trained else s.text for s in template.render(chat))
    assert '"name": "weather", "parameters"' in text.split("«")[0]
    assert text.count("«") == 2
    call = '{"name": "weather", "arguments": {"town": "Köln"}}'
    assert f"assistant\n«<tool_call>\n{call}\n</tool_call><|im_end|>»" in text
    assert "<tool_response>\nrain\n</tool_response>" in text
    assert text.endswith("«Yes<|im_end|>»\n")
    example = encode_chat(chat, template, altered)
    for place in (1, 3):
        prompt = encode_prompt(chat.messages[:place], template, altered, chat.tools)
        assert list(example.ids[: len(prompt)]) == prompt
        assert example.weights[len(prompt)] == 1.0


def test_a_turn_of_a_tool_says_whose_it_is(altered: PreTrainedTokenizerFast) -> None:
    altered.chat_template = (
        "{% for m in messages %}{{ m.role }} {{ m.name }} {{ m.tool_call_id }}: {{ m.content }}"
        "{% for c in m.tool_calls %}{{ c.id }} {{ c.function.name }}{% endfor %}<|im_end|>{% endfor %}"
    )
    written = show(choose_template(altered, "plain"), USER, CALL, REPLY, ANSWER)
    assert "c1 weather" in written
    assert "tool weather c1: rain" in written


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        (Chat((USER, ANSWER), (WEATHER,)), "does not write the tool 'weather'; leave out 'tools', or choose"),
        (
            Chat((USER, CALL, REPLY, ANSWER)),
            "does not write a call of 'weather'; choose a template that does",
        ),
    ],
)
def test_a_tokenizers_template_that_would_lose_tools_is_refused(
    chatml: PreTrainedTokenizerFast, chat: Chat, message: str
) -> None:
    with pytest.raises(DataError, match=f"the tokenizer's chat template {message}"):
        choose_template(chatml, "plain").render(chat)


@pytest.mark.parametrize("name", ["tokenizer", *LAYOUTS])
def test_the_last_answer_alone_has_the_same_prompt(chatml: PreTrainedTokenizerFast, name: str) -> None:
    template = choose_template(chatml, "plain", name)
    messages = (SYSTEM, USER, ANSWER, MORE, LAST)
    segments = template.render(Chat((*messages, USER)), last_only=True)
    places = [place for place, segment in enumerate(segments) if segment.trained]
    assert segments[places[-1]].text.strip().startswith("No")
    assert segments[: places[-1]] == template.segments(messages[:-1], ask=True)


RETHINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.last and m.role == 'assistant' %}<think>\n</think>\n{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Like those of models that think: what was thought for an earlier answer is taken out."""


def test_a_template_that_rewrites_earlier_answers_can_train_the_last(
    altered: PreTrainedTokenizerFast,
) -> None:
    altered.chat_template = RETHINKING
    template = choose_template(altered, "plain")
    chat = Chat((USER, ANSWER, MORE, LAST))
    with pytest.raises(DataError, match="train on the last answer alone, or choose another template"):
        template.render(chat)
    turns = [{"role": message.role, "content": message.content} for message in chat.messages]
    prompt = altered.apply_chat_template(turns[:-1], tokenize=False, add_generation_prompt=True)
    assert template.prompt_text(chat.messages[:-1]) == prompt
    segments = template.render(chat, last_only=True)
    assert [(s.text, s.trained) for s in segments] == [
        (prompt, False),
        ("<think>\n</think>\nNo<|im_end|>", True),
        ("\n", False),
    ]


@pytest.fixture
def jinja(tmp_path: Path) -> Path:
    return tmp_path / "mine.jinja"


def test_a_users_jinja(chatml: PreTrainedTokenizerFast, jinja: Path) -> None:
    jinja.write_text(PHI, encoding="utf8")
    template = choose_template(chatml, "plain", str(jinja))
    assert template.name == str(jinja)
    assert show(template, USER, ANSWER) == "<|user|>\nHi<|end|>\n<|assistant|>\n[Yes<|end|>]\n"
    assert "<|user|>" not in (chatml.chat_template or "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "{% for m in messages %}\n{{ m.content }\n{% endfor %}",
            r"mine\.jinja:2: no valid Jinja: unexpected",
        ),
        ("{% nonsense %}", r"mine\.jinja:1: no valid Jinja: Encountered unknown tag 'nonsense'"),
        (" \n", r"mine\.jinja: the file is empty"),
        ("\xff", r"mine\.jinja: cannot be read"),
    ],
)
def test_a_users_jinja_that_is_none(
    chatml: PreTrainedTokenizerFast, jinja: Path, text: str, message: str
) -> None:
    jinja.write_text(text, encoding="latin1")
    with pytest.raises(ConfigError, match=message) as caught:
        choose_template(chatml, "plain", str(jinja))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("{% for m in messages %}\n{{ m.content + 3 }}\n{% endfor %}", 2, "can only concatenate str"),
        ("\n\n{{ raise_exception('not today') }}", 3, "not today"),
        ("{{ messages[9].content.nothing }}", 1, "has no element 9"),
        ("{{ 1 / 0 }}", 1, "division"),
        ("{% for i in range(1000000000) %}{% endfor %}", 1, "Range too big"),
    ],
)
def test_what_a_users_jinja_refuses_names_file_and_line(
    chatml: PreTrainedTokenizerFast, jinja: Path, text: str, line: int, reason: str
) -> None:
    jinja.write_text(text, encoding="utf8")
    template = choose_template(chatml, "plain", str(jinja))
    with pytest.raises(DataError, match=rf"mine\.jinja:{line} refuses this conversation: .*{reason}"):
        template.render(Chat((USER, ANSWER)))


def test_a_users_jinja_runs_in_the_sandbox(chatml: PreTrainedTokenizerFast, jinja: Path) -> None:
    jinja.write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}", encoding="utf8")
    with pytest.raises(DataError, match="unsafe"):
        choose_template(chatml, "plain", str(jinja)).render(Chat((USER, ANSWER)))


def test_a_users_jinja_is_held_to_what_the_tokenizers_is(
    chatml: PreTrainedTokenizerFast, jinja: Path
) -> None:
    jinja.write_text(
        "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}", encoding="utf8"
    )
    with pytest.raises(DataError, match=r"mine\.jinja writes the text before turn .* differently"):
        choose_template(chatml, "plain", str(jinja)).render(Chat((USER, ANSWER, MORE, LAST)))


def test_a_line_break_that_ends_an_answer_is_trained_if_there_is_no_other_mark(
    altered: PreTrainedTokenizerFast,
) -> None:
    altered.chat_template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    assert show(choose_template(altered, "plain"), USER, ANSWER) == "Hi\n[Yes\n]"


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{% if loop.last %}!{% endif %}{{ m['content'] }}{% endfor %}",
        "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}",
        "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}?{% endif %}",
    ],
)
def test_a_template_that_rewrites_earlier_text_is_refused(
    altered: PreTrainedTokenizerFast, source: str
) -> None:
    altered.chat_template = source
    with pytest.raises(DataError, match=r"writes the text before turn .* differently"):
        choose_template(altered, "plain").render(Chat((USER, ANSWER, MORE, LAST)))


def test_a_template_that_refuses_a_conversation_says_why(altered: PreTrainedTokenizerFast) -> None:
    altered.chat_template = "{{ raise_exception('no system turn,\nplease') }}"
    with pytest.raises(DataError, match="refuses this conversation: no system turn, please"):
        choose_template(altered, "plain").prompt_text([SYSTEM])


def test_the_tokenizers_own_cannot_begin_with_the_assistant(chatml: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match="needs a turn before the assistant's first"):
        choose_template(chatml, "plain").render(Chat((ANSWER,)))


def test_names(altered: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ConfigError, match=r"unknown template 'vicunna'.*Did you mean 'vicuna'"):
        choose_template(altered, "plain", "vicunna")
    altered.chat_template = None
    assert choose_template(altered, "vicuna").name == "vicuna"
    with pytest.raises(
        ConfigError, match="has no chat template; choose one of alpaca, bare, chatml, gemma, "
    ):
        choose_template(altered, "plain", "tokenizer")
    assert choose_template(altered, "plain", "llama-3").name == "llama-3"
    with pytest.raises(ConfigError, match=r"known are auto, .*, and the path of a \.jinja file.*'llama-3'"):
        choose_template(altered, "plain", "llama3")
    with pytest.raises(ConfigError, match=r"template none\.jinja: no such file"):
        choose_template(altered, "plain", "none.jinja")
    altered.eos_token = None
    with pytest.raises(ModelError, match="template 'plain' ends an answer with"):
        choose_template(altered, "plain")
