"""Text comes as the model itself would write it, stops where it should, and leaves the model as it was."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from loralab.adapters import get_peft_model
from loralab.adapters.habits import Habits
from loralab.core.config import LoraConfig
from loralab.data.encode import encode_prompt
from loralab.data.templates import choose_template
from loralab.data.types import Message
from loralab.errors import ConfigError
from loralab.serving.generate import Sampling, continue_text, stream, template_for

RAW = Habits(format="text")
PROMPTS = ["the little dog", "a", "sing in the sun and\nsaw one\n\nred bird", "Zürich 猫 🙂"]
DIALOGUE = (
    "<|im_start|>user\nwho ran<|im_end|>\n<|im_start|>assistant\nthe little dog<|im_end|>\n<|im_start|>user\n"
)


@pytest.fixture(scope="module")
def pair(tiny: SimpleNamespace) -> tuple[Any, Any]:
    """A random model and a tokenizer without a chat template."""
    return tiny.make_model(), tiny.make_tokenizer()


def text_of(pieces: Any) -> str:
    return "".join(pieces)


def generated(model: Any, tokenizer: Any, prompt: str, tokens: int) -> str:
    """What transformers writes by itself."""
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    written = model.generate(**inputs, do_sample=False, max_new_tokens=tokens)
    return tokenizer.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text_is_the_model_s_own(pair, prompt):
    assert text_of(stream(*pair, prompt, RAW, Sampling(30))) == generated(*pair, prompt, 30)


@pytest.mark.parametrize("prompt", ["Once upon a time", "Tom had a", '"What is it?" asked Lily.\n'])
def test_greedy_text_of_a_real_model(stories_model_dir, prompt):
    model = AutoModelForCausalLM.from_pretrained(stories_model_dir, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(stories_model_dir)
    pieces = list(stream(model, tokenizer, prompt, RAW, Sampling(60)))
    assert text_of(pieces) == generated(model, tokenizer, prompt, 60)
    assert len([piece for piece in pieces if piece]) > 10, "it comes in pieces"


def test_an_answer_ends_with_the_template_s_mark(taught):
    model, tokenizer = taught(DIALOGUE)
    assert text_of(stream(model, tokenizer, "who ran", Habits(), Sampling(40))) == "the little dog"
    said = [Message("user", "who ran")]
    assert text_of(stream(model, tokenizer, said, Habits(), Sampling(40))) == "the little dog"
    assert text_of(stream(model, tokenizer, said, Habits(), Sampling(2))) == "the little"


def test_the_mark_ends_an_answer_though_the_model_s_files_name_another(taught):
    """The model was made with an end of sequence that the template does not use."""
    model, tokenizer = taught(DIALOGUE)
    assert model.generation_config.eos_token_id == 1 != tokenizer.convert_tokens_to_ids("<|im_end|>")
    ids = encode_prompt([Message("user", "who ran")], choose_template(tokenizer, "plain"), tokenizer)
    steps = []
    model.register_forward_hook(lambda *_: steps.append(1))
    answer = tokenizer("the little dog")["input_ids"]
    assert text_of(stream(model, tokenizer, "who ran", Habits(), Sampling(40))) == "the little dog"
    assert len(steps) == len(answer) + 1, "not a token is computed past the mark"
    assert len(ids) + len(answer) < 128


def test_raw_text_ends_with_the_end_of_sequence(taught):
    model, tokenizer = taught("the little dog ran<|im_end|>a big tree")
    assert text_of(stream(model, tokenizer, "the little", RAW, Sampling(40))) == " dog ran"


@pytest.mark.parametrize(
    ("habits", "chat", "expected"),
    [
        (Habits(), False, None),
        (Habits(), True, "tokenizer"),
        (Habits("text", "auto"), True, None),
        (Habits("completion", "auto"), False, "plain"),
        (Habits("completion", "plain"), True, "plain"),
        (Habits("alpaca", "auto"), False, "alpaca"),
        (Habits("messages", "tokenizer"), True, "tokenizer"),
        (Habits("messages", "tokenizer"), False, "chatml"),
        (Habits("messages", "vicuna"), True, "vicuna"),
    ],
)
def test_which_template_an_adapter_is_spoken_to_in(tiny, habits, chat, expected):
    template = template_for(habits, tiny.make_tokenizer(chat=chat))
    assert (template.name if template else None) == expected


def test_an_adapter_s_own_jinja_writes_its_prompts(taught):
    model, tokenizer = taught(DIALOGUE.replace("user", "USER"))
    jinja = (
        "{% for m in messages %}<|im_start|>{{ m.role | upper if m.role == 'user' else m.role }}\n"
        "{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    habits = Habits("messages", "chat_template.jinja", jinja=jinja)
    assert text_of(stream(model, tokenizer, "who ran", habits, Sampling(40))) == "the little dog"
    with pytest.raises(ConfigError, match=r"chat_template\.jinja:1: no valid Jinja"):
        template_for(Habits(jinja="{% if %}", template="chat_template.jinja"), tokenizer)


def test_what_is_said_goes_into_the_prompts_of_the_format_file(taught):
    model, tokenizer = taught("Do: who ran\nDone: the little dog<|im_end|>")
    habits = Habits("my-format.json", "bare", prompt=("Do: ", "\nDone:"))
    for said in ("who ran", [Message("user", "who ran")]):
        assert text_of(stream(model, tokenizer, said, habits, Sampling(40))) == " the little dog"


def test_a_template_that_is_unknown_is_an_error(tiny):
    with pytest.raises(ConfigError, match="Did you mean 'vicuna'"):
        template_for(Habits("messages", "vicuna2"), tiny.make_tokenizer())


def test_without_a_template_the_last_message_goes_on(pair):
    said = [Message("user", "one"), Message("assistant", "two"), Message("user", "the little dog")]
    assert text_of(stream(*pair, said, RAW, Sampling(9))) == generated(*pair, "the little dog", 9)


# sampling


def test_sampling_repeats_with_its_seed_and_differs_with_another(pair):
    texts = [
        text_of(stream(*pair, "the", RAW, Sampling(20, temperature=1.3, seed=seed))) for seed in (5, 5, 6, 7)
    ]
    assert texts[0] == texts[1]
    assert len({*texts}) == 3


def test_what_was_drawn_before_does_not_matter(pair):
    def draw() -> str:
        return text_of(stream(*pair, "the", RAW, Sampling(20, temperature=1.3, seed=5)))

    first = draw()
    torch.rand(100)
    assert draw() == first


def test_almost_no_temperature_or_share_is_greedy(pair):
    greedy = text_of(stream(*pair, "the", RAW, Sampling(20)))
    for sampling in (Sampling(20, temperature=1e-4), Sampling(20, temperature=2.0, top_p=1e-6)):
        assert text_of(stream(*pair, "the", RAW, sampling)) == greedy
    assert text_of(stream(*pair, "the", RAW, Sampling(20, temperature=2.0))) != greedy


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; expected at least 1"),
        ({"temperature": -0.1}, "temperature is -0.1; expected 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_p": 0}, "top_p is 0; expected a share above 0, up to 1"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"top_p": float("nan")}, "top_p is nan"),
    ],
)
def test_a_setting_out_of_range_is_named(settings, words):
    with pytest.raises(ConfigError, match=words):
        Sampling(**settings)


# room


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_prompt_that_leaves_no_room_is_one_clear_error(tiny, kind):
    model, tokenizer = tiny.make_model(), tiny.make_tokenizer()
    if kind == "gpt2":
        model = GPT2LMHeadModel(
            GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2, n_positions=128)
        ).eval()
    for length in (128, 500):
        with pytest.raises(ConfigError) as caught:
            list(continue_text(model, tokenizer, [5] * length, [], Sampling()))
        assert (
            str(caught.value)
            == f"the prompt has {length} tokens and the model 128 positions: no room to answer."
        )


def test_an_answer_ends_where_the_model_s_positions_do(pair):
    model, tokenizer = pair
    lengths = []
    model.register_forward_hook(lambda _, __, out: lengths.append(out.logits.shape[1]))
    text_of(continue_text(model, tokenizer, [5] * 125, [], Sampling(200)))
    assert len(lengths) == 3
    lengths.clear()
    text_of(continue_text(model, tokenizer, [5] * 127, [], Sampling(200)))
    assert len(lengths) == 1


# the model afterwards


@pytest.fixture
def adapted(tiny):
    """A model with an adapter that does something, and its tokenizer."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=32, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(tiny.make_model(), config).eval(), tiny.make_tokenizer()


def test_the_base_beside_the_adapter_is_the_base(pair, adapted):
    model, tokenizer = adapted
    base = text_of(stream(*pair, "the", RAW, Sampling(20)))
    before = text_of(stream(model, tokenizer, "the", RAW, Sampling(20)))
    with model.disable_adapter():
        assert text_of(stream(model, tokenizer, "the", RAW, Sampling(20))) == base
    assert text_of(stream(model, tokenizer, "the", RAW, Sampling(20))) == before != base


def test_closing_a_stream_stops_the_writing(adapted):
    model, tokenizer = adapted
    expected = text_of(stream(model, tokenizer, "the", RAW, Sampling(20)))
    threads = threading.active_count()
    steps = []
    hook = model.get_base_model().register_forward_hook(lambda *_: steps.append(1))
    with model.disable_adapter():
        pieces = stream(model, tokenizer, "the", RAW, Sampling(100))
        next(pieces)
        pieces.close()
        assert threading.active_count() == threads
        done = len(steps)
    assert done < 100
    assert len(steps) == done
    hook.remove()
    assert text_of(stream(model, tokenizer, "the", RAW, Sampling(20))) == expected


def test_a_failure_while_writing_reaches_the_reader(pair):
    model, tokenizer = pair

    def fail(*_: object) -> None:
        raise RuntimeError("the third layer caught fire")

    hook = model.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="caught fire"):
        list(stream(model, tokenizer, "the", RAW, Sampling(5)))
    hook.remove()
    assert text_of(stream(model, tokenizer, "the", RAW, Sampling(5))) == generated(model, tokenizer, "the", 5)
