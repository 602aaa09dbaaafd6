"""The bundled demo: a base that answers and tells stories, and a task that it has not seen."""

import importlib
import json
import re
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

ROOT = Path(__file__).parents[2]
GENERATOR = ROOT / "scripts" / "demo_base"
DEMO = ROOT / "src" / "loralab" / "models" / "demo"
BASE, TASKS = DEMO / "base", DEMO / "tasks"
CHAT = [
    {"role": "system", "content": "Answer in short sentences."},
    {"role": "user", "content": "What colour is the sky?"},
    {"role": "assistant", "content": "The sky is blue."},
    {"role": "user", "content": "Thank you!"},
]
OPENINGS = ("Once upon a time", "The little dog", "Tom and Anna went to the")


@pytest.fixture(scope="module", autouse=True)
def _generator_on_path():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(GENERATOR))
        before = set(sys.modules)
        yield
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(GENERATOR)):
                del sys.modules[name]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(BASE, local_files_only=True)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(BASE, local_files_only=True, dtype=torch.float32).eval()


def greedy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, tokens: int) -> str:
    inputs = tokenizer(text, return_tensors="pt")
    written = model.generate(**inputs, do_sample=False, max_new_tokens=tokens)
    return tokenizer.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def ask_all(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: list[str]) -> list[str]:
    chats = [[{"role": "user", "content": question}] for question in questions]
    prompts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    written = model.generate(**inputs, do_sample=False, max_new_tokens=30)
    return tokenizer.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.fixture(scope="module", params=OPENINGS)
def story(request, model, tokenizer) -> str:
    return request.param + greedy(model, tokenizer, request.param, 150)


def rows(name: str) -> list[list[dict[str, str]]]:
    return [json.loads(line)["messages"] for line in (TASKS / name).read_text(encoding="utf-8").splitlines()]


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


def test_the_weights_are_small_bf16_safetensors(model):
    assert (BASE / "model.safetensors").stat().st_size <= 8_000_000
    assert model.num_parameters() <= 3_900_000
    assert json.loads((BASE / "config.json").read_text())["dtype"] == "bfloat16"


def test_the_tokenizer_writes_any_text_back(tokenizer):
    text = "A naïve 猫 said: <b>hi</b>\n\t  Zürich 3.14 🙂"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)


def test_the_chat_template_never_changes_what_it_wrote(tokenizer):
    whole = tokenizer.apply_chat_template(CHAT, tokenize=False)
    for end in range(1, len(CHAT)):
        prefix = tokenizer.apply_chat_template(CHAT[:end], tokenize=False)
        assert whole.startswith(prefix)
        ids = tokenizer(prefix)["input_ids"]
        assert tokenizer(whole)["input_ids"][: len(ids)] == ids
    prompt = tokenizer.apply_chat_template(CHAT[:2], tokenize=False, add_generation_prompt=True)
    assert whole.startswith(prompt)
    assert whole[len(prompt) :].startswith("The sky is blue.<|im_end|>")


def test_the_generator_is_deterministic_and_varied():
    documents = module("stories").documents
    some = list(documents(6000, seed=3))
    assert some == list(documents(6000, seed=3))
    assert some[:50] != list(documents(50, seed=4))
    texts = [doc.text for doc in some] + [turn["content"] for doc in some for turn in doc.messages]
    sentences = {sentence for text in texts for sentence in re.split(r"(?<=[.!?]) ", text)}
    assert len(sentences) >= 5_000
    # Nothing left unfilled, no doubled space, and a/an agree with what follows.
    faults = re.compile(r"[{}\[\]|]|  |\b[Aa] [aeio]\w|\b[Aa]n [^aeiou\W]| [.,!?]")
    assert [sentence for sentence in sentences if faults.search(sentence)] == []


def test_no_question_has_two_answers():
    facts = module("facts")
    answers: dict[str, set[str]] = {}
    for group in facts.fact_groups():
        for fact in group:
            assert fact.key.lower() in fact.answer.lower()
            for question in facts.questions(fact):
                answers.setdefault(question, set()).add(fact.answer)
    assert len(answers) >= 5_000
    assert {question: some for question, some in answers.items() if len(some) > 1} == {}


def test_the_committed_task_is_what_the_script_writes():
    train, evaluation = module("make_tasks").pirate_rows()
    assert [row["messages"] for row in train] == rows("pirate_train.jsonl")
    assert [row["messages"] for row in evaluation] == rows("pirate_eval.jsonl")


def test_the_prompts_of_train_and_eval_are_apart():
    train = {messages[0]["content"] for messages in rows("pirate_train.jsonl")}
    evaluation = {messages[0]["content"] for messages in rows("pirate_eval.jsonl")}
    prompts = json.loads((TASKS / "prompts.json").read_text(encoding="utf-8"))
    assert (len(train), len(evaluation), len(set(prompts))) == (1000, 60, 3)
    assert not train & evaluation
    assert not train & set(prompts)


def test_pirates_do_not_all_speak_alike():
    answers = [messages[1]["content"] for messages in rows("pirate_train.jsonl")]
    assert len(set(answers)) >= 900
    assert len({answer.split()[0] for answer in answers}) >= 20
    plain = {fact.answer for group in module("facts").fact_groups() for fact in group}
    assert not plain & set(answers)


@pytest.mark.parametrize(
    ("question", "word"),
    [
        ("What colour is the grass?", "green"),
        ("Where does a fish live?", "water"),
        ("What does a baker do?", "bread"),
        ("What is the opposite of big?", "small"),
        ("How many legs does a dog have?", "four"),
        ("What is a baby cat called?", "kitten"),
        ("Where does a teacher work?", "school"),
        pytest.param(
            "What day comes after Monday?",
            "Tuesday",
            marks=pytest.mark.xfail(strict=True, reason="the base is weak at putting days in order"),
        ),
        ("What do you use a key for?", "lock"),
    ],
)
def test_the_base_answers_plain_questions(model, tokenizer, question, word):
    (answer,) = ask_all(model, tokenizer, [question])
    assert word in answer
    assert answer.endswith(".")
    assert "matey" not in answer


def test_the_base_answers_more_than_half_of_the_questions_kept_from_it(model, tokenizer):
    facts, stories = module("facts"), module("stories")
    kept_out = [
        (question, fact.key)
        for group in facts.fact_groups(hard=False)
        for fact in group
        for question in facts.questions(fact)
        if stories.is_held_out(question)
    ]
    sample = kept_out[:: len(kept_out) // 40][:40]
    answers = ask_all(model, tokenizer, [question for question, _ in sample])
    right = [key.lower() in answer.lower() for answer, (_, key) in zip(answers, sample, strict=True)]
    assert sum(right) >= 0.5 * len(sample)


def test_a_story_goes_on_in_clean_english(story):
    assert re.fullmatch(r"[A-Za-z ,.!?\"':;-]+", story)
    sentences = [sentence for sentence in re.split(r"(?<=[.!?]) ", story) if sentence]
    assert len(sentences) >= 5
    assert Counter(sentences).most_common(1)[0][1] <= 2
    told = " ".join(doc.text for doc in module("stories").documents(6000, seed=3))
    known = set(re.findall(r"\w+", told.lower()))
    assert [word for word in re.findall(r"\w+", story.lower())[:-1] if word not in known] == []


def test_a_story_stays_with_its_people(story):
    cast = module("cast")
    named = set(re.findall(r"\w+", story)) & set(cast.BOYS + cast.GIRLS + cast.PETS)
    first = set(re.findall(r"\w+", " ".join(re.split(r"(?<=[.!?]) ", story)[:2])))
    assert len(named - first) <= 1, f"newcomers {named - first} in: {story}"
