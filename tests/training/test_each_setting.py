"""Each setting changes the run: what it reads, makes, does or writes is not what it is without it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from loralab.training.config import RunConfig, check
from loralab.training.run import Run
from loralab.training.starting import ready, start

NOT_A_RUN = {"name", "model", "runs", "effort", "allow_pickle", "shard"}
"""What a run is of and where it lies; the others are tested below, and shard in test_devices."""


@pytest.fixture
def files(tmp_path: Path, tiny: Any) -> dict[str, Path]:
    """Data of every kind that a setting needs."""
    made = {
        "rows": tiny.write_jsonl(tmp_path / "rows.jsonl", tiny.make_rows(23)),
        "other": tiny.write_jsonl(tmp_path / "other.jsonl", tiny.make_rows(9, seed=5)),
        "questions": tmp_path / "questions.jsonl",
        "chats": tmp_path / "chats.jsonl",
        "text": tmp_path / "text.txt",
        "prompts": tmp_path / "prompts.txt",
    }
    rows = [json.loads(line) for line in made["rows"].read_text().splitlines()]
    asked = [{"q": row["prompt"], "completion": row["completion"]} for row in rows]
    tiny.write_jsonl(made["questions"], asked)
    turns = ("the dog", "ran to a tree", "a bird", "sing in the sun")
    chats = [
        {
            "messages": [
                {"role": ("user", "assistant")[i % 2], "content": f"{turn} {number}"}
                for i, turn in enumerate(turns)
            ]
        }
        for number in range(12)
    ]
    tiny.write_jsonl(made["chats"], chats)
    passage = "the little dog ran to a big tree and saw one red bird sing\nin the sun "
    made["text"].write_text("\n\n\n".join(f"{passage * 4}{number}" for number in range(8)) + "\n\n\na dog")
    made["prompts"].write_text("the dog\na bird\n")
    return made


def outcome(run: Run) -> dict[str, Any]:
    """Train, and return all that can be told of a run but where it lies and how long it took."""
    events = []
    for event in run.events():
        told = event.to_dict()
        for key in ("seconds", "path", "peak_memory"):
            told.pop(key, None)
        events.append(told)
    folder = run.folder
    plan = folder.plan()
    plan.pop("memory")
    result = folder.model if run.config.full else folder.adapter
    weights = load_file(next(result.glob("*.safetensors")))
    return {
        "events": events,
        "plan": plan,
        "memory": (run.memory.recomputed, run.memory.free),
        "files": sorted(str(path.relative_to(folder.path)) for path in folder.path.rglob("*")),
        "weights": {key: (str(t.dtype), t.double().sum().item()) for key, t in weights.items()},
        "dtype": str(run.base.dtype),
        "base": sorted({type(module).__name__ for module in run.base.model.modules()}),
        "general": json.loads((folder.path / "measured.json").read_text())
        if (folder.path / "measured.json").exists()
        else None,
    }


def compiled(run: Run) -> int:
    """Return how many of the base's modules are compiled."""
    return sum(module._compiled_call_impl is not None for module in run.base.model.modules())


Setting = tuple[str, Any, dict[str, Any]]
CASES: list[Setting] = [
    ("data", "other", {}),
    ("eval_data", "other", {}),
    ("eval_split", 0.3, {}),
    ("format", "completion", {"data": "ambiguous"}),
    ("columns", "prompt=q", {"data": "questions"}),
    ("template", "bare", {}),
    ("train_on", "last-answer", {"data": "chats"}),
    ("cutoff_length", 40, {"data": "text"}),
    ("too_long", "cut", {"cutoff_length": 60}),
    ("overlap_length", 8, {"data": "text", "cutoff_length": 40}),
    ("hard_cut_string", "\\n\\n\\n", {"data": "text"}),
    ("newline_favor_length", 30, {"data": "text", "cutoff_length": 48}),
    ("min_chars", 20, {"data": "text", "hard_cut_string": "\\n\\n\\n"}),
    ("add_bos", False, {"data": "text", "bos": True}),
    ("add_eos", False, {"data": "text"}),
    ("r", 2, {}),
    ("lora_alpha", 4.0, {}),
    ("lora_dropout", 0.3, {}),
    ("target_modules", "attention", {}),
    ("last_layers", 1, {}),
    ("modules_to_save", "norm", {}),
    ("use_rslora", True, {}),
    ("use_dora", True, {}),
    ("init", "orthogonal", {}),
    ("from_adapter", "trained", {}),
    ("full", True, {"r": 16}),
    ("optimizer", "sgd", {}),
    ("learning_rate", 1e-3, {}),
    ("lora_plus_ratio", 8.0, {}),
    ("lr_scheduler", "wsd", {}),
    ("lr_cycles", 3, {"lr_scheduler": "cosine_with_restarts"}),
    ("lr_power", 3.0, {"lr_scheduler": "polynomial"}),
    ("warmup_steps", 4, {}),
    ("warmup_ratio", 0.5, {}),
    ("weight_decay", 0.5, {}),
    ("max_grad_norm", 0.01, {}),
    ("epochs", 2.0, {"max_steps": None}),
    ("max_steps", 5, {}),
    ("batch_size", 3, {}),
    ("micro_batch_size", 2, {}),
    ("neftune_alpha", 10.0, {}),
    ("label_smoothing", 0.2, {}),
    ("seed", 7, {}),
    ("dtype", "bfloat16", {}),
    ("quantize", "int8", {}),
    ("activation_checkpointing", True, {}),
    ("max_memory", 0.001, {}),
    ("compile", True, {}),
    ("eval_steps", 2, {"eval_data": "other"}),
    ("save_steps", 3, {"save_steps": None}),
    ("keep_checkpoints", 1, {"save_steps": 2}),
    ("keep_best", False, {"eval_data": "other", "learning_rate": 1.0, "eval_steps": 1}),
    ("stop_at_loss", 100.0, {"max_steps": 14}),
    ("early_stopping", 1, {"eval_data": "other", "learning_rate": 1.0, "eval_steps": 1}),
    ("sample_prompts", "prompts", {}),
    ("sample_steps", 3, {"sample_prompts": "prompts"}),
    ("general_data", "text", {}),
    ("report_to", "csv", {}),
]


def test_every_setting_is_here():
    assert {name for name, _, _ in CASES} | NOT_A_RUN == RunConfig.model_fields.keys()


@pytest.fixture
def make(settings: Callable[..., RunConfig], files: dict[str, Path]) -> Callable[..., RunConfig]:
    """Return the checked settings of a small run, with files by their names above."""

    def made(name: str, **changes: Any) -> RunConfig:
        values = settings(name=name).model_dump() | changes
        named = {key: str(files[value]) for key, value in values.items() if value in files}
        return check(values | named)

    return made


@pytest.mark.slow
@pytest.mark.parametrize(("name", "value", "given"), CASES, ids=[case[0] for case in CASES])
def test_a_setting_changes_the_run(make, name, value, given, tiny_dir, tmp_path, tiny):
    given = dict(given)
    if given.pop("bos", False):
        pytest.skip(
            "the tiny tokenizer begins texts with nothing; tests/data/test_encode.py has one that does"
        )
    if given.get("data") == "ambiguous":
        rows = [{"text": "a dog ran", "prompt": "a dog", "completion": "ran to a tree"}] * 4
        given["data"] = str(tiny.write_jsonl(tmp_path / "both.jsonl", rows))
        with pytest.raises(Exception, match="say which: "):
            ready(make("plain", **given))
        assert ready(make("changed", **given, format=value)).data.format == value
        return
    if name == "columns":
        with pytest.raises(Exception, match="row has columns"):
            ready(make("plain", **given))
        assert len(ready(make("changed", **given, columns=value)).data.examples) == 23
        return
    if name == "compile":  # what is compiled trains as before: test_compiling has it in a process of its own
        assert compiled(ready(make("changed", compile=True))) > compiled(ready(make("plain"))) == 0
        return
    if name == "from_adapter":
        list(start(make(value)).events())
        value = str(tmp_path / "runs" / value)
    plain = outcome(start(make("plain", **given)))
    changed = outcome(start(make("changed", **given | {name: value})))
    assert changed != plain


def test_an_effort_chooses_what_is_left_out():
    chosen = {effort: check({"effort": effort}) for effort in ("quick", "balanced", "thorough")}
    assert chosen["quick"].epochs < chosen["balanced"].epochs
    assert chosen["quick"].r < chosen["thorough"].r
    assert check({"effort": "thorough", "r": 5}).r == 5, "what is given is kept"


def test_a_pickle_is_loaded_by_leave_only(settings, tiny_dir, tmp_path):
    folder = tmp_path / "pickled"
    folder.mkdir()
    for file in tiny_dir.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    torch.save(load_file(tiny_dir / "model.safetensors"), folder / "pytorch_model.bin")
    with pytest.raises(Exception, match="pickle"):
        ready(settings(model=str(folder)))
    assert ready(settings(model=str(folder), allow_pickle=True)).plan.steps == 8
