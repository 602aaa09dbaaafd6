"""Every command, run for real."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from loralab.training.config import RunConfig
from loralab.training.folder import RunFolder

WEIGHTS = "adapter_model.safetensors"
TRAIN = ("train", "--model", "tiny", "--data", "train.jsonl", "--max-steps", "2", "--r", "2")


def python(*arguments: str, stdin: str = "", cwd: Path) -> subprocess.CompletedProcess[str]:
    """``python -m loralab.cli`` in a process of its own."""
    command = [sys.executable, "-m", "loralab.cli", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, cwd=cwd, timeout=120)


# train, resume, runs


def test_train_with_flags(bench, loralab):
    result = loralab(*TRAIN, "--name", "a", "--eval-data", "eval.jsonl", "--plain")
    assert (result.code, result.err) == (0, "")
    run = RunFolder(Path("runs/a"))
    assert run.state().state == "finished"
    assert (run.adapter / WEIGHTS).is_file()
    for words in (
        "run: runs/a\n",
        "base: tiny, 14,288 parameters, float32 on cpu\n",
        "data: train.jsonl: 12 examples (format completion, template plain)",
        "eval data: eval.jsonl: 5 examples",
        "rank 2, alpha 32, on 15 modules",
        "2 x (16 + 300) = 632 numbers in place of 16 x 300 = 4,800",
        "plan: 2 steps of 8 examples",
        "step 2/2  loss ",
        "eval loss: base ",
        "adapter: runs/a/adapter\n",
        "loralab chat --model tiny --adapter a --compare\n",
        "loralab show a\n",
        "loralab merge --model tiny --adapter a --out a-merged\n",
    ):
        assert words in result.out
    trainable = sum(tensor.numel() for tensor in load_file(run.adapter / WEIGHTS).values())
    assert f"trained: {trainable:,} of {14288 + trainable:,} parameters" in result.out


def test_many_flags_at_once(bench, loralab):
    """All but allow_pickle, which is a switch."""
    values = {
        "name": "all",
        "model": "tiny",
        "data": "corpus.txt",
        "eval_data": "corpus.txt",
        "runs": "elsewhere",
        "format": "text",
        "template": "none",
        "cutoff_length": 20,
        "overlap_length": 4,
        "r": 3,
        "lora_alpha": 6.0,
        "lora_dropout": 0.25,
        "target_modules": "q_proj,v_proj",
        "learning_rate": 0.001,
        "lr_scheduler": "linear",
        "warmup_steps": 1,
        "weight_decay": 0.01,
        "max_grad_norm": 0.5,
        "max_steps": 2,
        "batch_size": 4,
        "micro_batch_size": 2,
        "eval_steps": 2,
        "save_steps": 1,
        "keep_checkpoints": 1,
        "seed": 5,
        "dtype": "float32",
        "quantize": "nf4",
    }
    flags = ("allow_pickle", "activation_checkpointing", "compile")
    Path("corpus.txt").write_text("the little dog ran to a big tree\n" * 12)
    words = [word for key, value in values.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    words += [f"--{flag.replace('_', '-')}" for flag in flags]
    assert loralab("train", *words).code == 0
    expected = RunConfig(**values, **dict.fromkeys(flags, True))
    assert RunFolder(Path("elsewhere/all")).config() == expected


def test_train_from_a_file_and_flags_go_before_it(bench, loralab):
    Path("run.toml").write_text('model = "tiny"\ndata = "train.jsonl"\nname = "a"\nr = 2\nmax_steps = 2\n')
    assert loralab("train", "run.toml").code == 0
    assert loralab("train", "run.toml", "--name", "b", "--r", "3").code == 0
    ranks = {name: RunFolder(Path("runs") / name).config().r for name in ("a", "b")}
    assert ranks == {"a": 2, "b": 3}
    assert loralab("train", "runs/a/config.toml", "--name", "c").code == 0
    assert Path("runs/c/adapter", WEIGHTS).read_bytes() == Path("runs/a/adapter", WEIGHTS).read_bytes()


def test_a_flag_set_to_the_default_still_goes_before_the_file(bench, loralab):
    Path("run.toml").write_text(
        'model = "tiny"\ndata = "train.jsonl"\nr = 2\nmax_steps = 1\nlora_alpha = 3\n'
    )
    assert loralab("train", "run.toml", "--name", "a", "--lora-alpha", RunConfig().lora_alpha).code == 0
    assert RunFolder(Path("runs/a")).config().lora_alpha == RunConfig().lora_alpha


def test_a_run_s_length_is_said_once_or_by_the_flag(bench, loralab):
    both = loralab("plan", "--model", "tiny", "--data", "train.jsonl", "--epochs", 3, "--max-steps", 2)
    assert both.code == 2
    assert both.err == "loralab: --epochs and --max-steps both say how long the run is; give one of them.\n"
    Path("run.toml").write_text('model = "tiny"\ndata = "train.jsonl"\nepochs = 2.0\nbatch_size = 4\n')
    assert loralab("plan", "run.toml", "--max-steps", 5, "--json").json["steps"] == 5
    copied = loralab("plan", "--like", "poet", "--epochs", 2, "--json").json
    assert (copied["steps"], copied["settings"]["epochs"]) == (6, 2.0)
    assert copied["settings"]["max_steps"] is None
    Path("run.toml").write_text('model = "tiny"\ndata = "train.jsonl"\nepochs = 2.0\nmax_steps = 5\n')
    assert "run.toml: epochs has no effect beside max_steps" in loralab("plan", "run.toml").err


def test_a_plan_says_what_the_run_s_folder_will(bench, loralab, tmp_path):
    Path("prompts.txt").write_text("the dog\n")
    words = ("--like", "poet", "--name", "next", "--sample-prompts", "prompts.txt", "--json")
    planned = loralab("plan", *words).json
    assert loralab("train", *words).code == 0
    written = RunFolder(Path("runs/next")).plan()
    for name in ("settings", "memory", "findings"):
        del written[name]
    assert written.items() <= planned.items()
    probed = planned["probe"]
    at_least = 2 * probed["evaluation_seconds"] + 5 * probed["sampling_seconds"] + 4 * probed["step_seconds"]
    assert probed["seconds"] >= at_least > 0
    assert probed["sampling_seconds"] > 0


def test_train_as_json_is_one_event_a_line(bench, loralab):
    result = loralab(*TRAIN, "--name", "a", "--json")
    assert [event["event"] for event in result.lines] == [
        *("started", "stepped", "saved", "stepped", "saved", "finished")
    ]
    written = [dict(event) for event in RunFolder(Path("runs/a")).events()]
    for event in written:
        del event["time"]
    assert result.lines == written


def test_overwrite(bench, loralab):
    assert loralab(*TRAIN, "--name", "poet", "--overwrite").code == 0
    assert RunFolder(Path("runs/poet")).config().r == 2


def test_resume(bench, loralab):
    """A run that was killed after its first checkpoint, by taking away what came later."""
    assert loralab(*TRAIN, "--name", "whole").code == 0
    assert loralab(*TRAIN, "--name", "cut").code == 0
    run = RunFolder(Path("runs/cut"))
    for path in (run.path / "run.json", *run.adapter.iterdir(), *run.checkpoint(2).iterdir()):
        path.unlink()
    result = loralab("resume", "cut", "--plain")
    assert result.code == 0
    assert "going on from step 1\n" in result.out
    assert (run.adapter / WEIGHTS).read_bytes() == Path("runs/whole/adapter", WEIGHTS).read_bytes()


def test_runs(bench, loralab):
    loralab(*TRAIN, "--name", "a")
    Path("runs/a/run.json").unlink()
    table = [line.split("\t") for line in loralab("runs").out.splitlines()]
    assert table[0] == ["name", "state", "steps", "loss", "base", "last sign"]
    assert [row[:3] for row in table[1:]] == [["poet", "finished", "4/4"], ["a", "interrupted", "0/0"]]
    (poet, other) = loralab("runs", "--json").json
    assert (poet["name"], poet["state"], poet["model"], poet["data"]) == (
        "poet",
        "finished",
        "tiny",
        "train.jsonl",
    )
    assert f"{poet['loss']:.4f}" == table[1][3]
    assert (other["name"], other["state"]) == ("a", "interrupted")


def test_no_runs(bench, loralab):
    assert "no runs in elsewhere. Start one with: loralab train" in loralab("runs", "--runs", "elsewhere").out
    assert loralab("runs", "--runs", "elsewhere", "--json").json == []


def test_a_damaged_run_is_listed_beside_the_others(bench, loralab):
    for name, text in (("good", 'name = "good"'), ("torn", "name = ")):
        Path("elsewhere", name).mkdir(parents=True)
        Path("elsewhere", name, "config.toml").write_text(text)
    by_name = {row["name"]: row for row in loralab("runs", "--runs", "elsewhere", "--json").json}
    assert by_name["good"]["state"] == "interrupted"
    assert by_name["torn"]["state"] == "damaged"
    assert "torn/config.toml" in by_name["torn"]["note"]
    assert "torn: elsewhere/torn/config.toml: not valid TOML" in loralab("runs", "--runs", "elsewhere").out


# data, eval


def test_data_shows_the_rows_as_the_model_sees_them(bench, loralab):
    rows = [json.loads(line) for line in Path("train.jsonl").read_text().splitlines()]
    shown = loralab("data", "train.jsonl", "--model", "tiny", "--show", "2").out
    for row in rows[:2]:
        assert f"{row['prompt']}\n«{row['completion']}»«<|end|>»\n" in shown
    assert f"{rows[2]['prompt']}\n" not in shown
    result = loralab("data", "train.jsonl", "--model", "tiny", "--show", "2", "--json").json
    assert (result["examples"], result["format"], result["template"]) == (12, "completion", "plain")
    assert len(result["shown"]) == 2
    pieces = result["shown"][0]["pieces"]
    assert (
        "".join(piece["text"] for piece in pieces) == f"{rows[0]['prompt']}\n{rows[0]['completion']}<|end|>"
    )
    assert [piece["trained"] for piece in pieces] == [False, True, True]
    assert loralab("data", "train.jsonl", "--model", "tiny", "--show", "0", "--json").json["shown"] == []


def test_data_tells_what_is_rejected_and_why(bench, loralab, tiny):
    rows = [*tiny.make_rows(2), {"prompt": "a", "completion": ""}, {"prompt": "a", "completion": "dog " * 90}]
    tiny.write_jsonl(Path("mixed.jsonl"), rows)
    arguments = ("data", "mixed.jsonl", "--model", "tiny", "--cutoff-length", "50")
    out = loralab(*arguments).out
    assert "2 rows rejected" in out
    assert "  rejected mixed.jsonl:3: with nothing to train on" in out
    assert "  rejected mixed.jsonl:4: longer than cutoff_length 50: " in out
    assert [row["source"] for row in loralab(*arguments, "--json").json["rejected"]] == [
        "mixed.jsonl:3",
        "mixed.jsonl:4",
    ]


def test_data_keeps_tabs_and_long_lines_whole(bench, loralab):
    Path("tabs.txt").write_text("a\tb " + "the " * 115)
    out = loralab("data", "tabs.txt", "--model", "tiny").out
    assert "a\tb " + "the " * 115 in out.replace("«", "").replace("»", "")


def test_eval_sets_the_base_beside_the_adapter(bench, loralab):
    arguments = ("eval", "--model", "tiny", "--adapter", "poet", "--data", "eval.jsonl")
    measured = loralab(*arguments, "--json").json["rows"]
    assert [row["adapter"] for row in measured] == ["base", "poet"]
    finished = list(RunFolder(Path("runs/poet")).events())[-1]
    for row, loss in zip(measured, (finished["base_loss"], finished["loss"]), strict=True):
        assert row["loss"] == pytest.approx(loss, rel=1e-6)
        assert row["perplexity"] == pytest.approx(float(torch.tensor(loss).exp()), rel=1e-5)
    assert measured[0]["tokens"] == measured[1]["tokens"] > 0
    assert measured[1]["loss"] < measured[0]["loss"]
    rows = [line.split("\t") for line in loralab(*arguments, "--plain").out.splitlines()[-3:]]
    assert rows[0] == ["adapter", "loss", "perplexity", "tokens"]
    assert [row[:2] for row in rows[1:]] == [[m["adapter"], f"{m['loss']:.4f}"] for m in measured]
    alone = loralab("eval", "--model", "tiny", "--data", "eval.jsonl", "--json").json["rows"]
    assert [row["loss"] for row in alone] == [measured[0]["loss"]]


def test_eval_takes_an_adapter_by_run_folder_or_checkpoint(bench, loralab):
    chosen = list(RunFolder(Path("runs/poet")).events())[-1]["chosen_step"]
    arguments = ("eval", "--model", "tiny", "--data", "eval.jsonl", "--again", "--json")
    losses = [
        loralab(*arguments, "--adapter", adapter).json["rows"][1]["loss"]
        for adapter in (
            "poet",
            "runs/poet/adapter",
            str(bench / "runs/poet/adapter"),
            f"runs/poet/checkpoints/{chosen:06d}",
        )
    ]
    assert all(loss == losses[0] for loss in losses)


def test_eval_writes_prompts_as_the_adapter_s_data_did(bench, loralab):
    loralab(*TRAIN, "--name", "v", "--template", "chatml")
    arguments = ("eval", "--model", "tiny", "--data", "eval.jsonl", "--adapter", "v", "--again", "--json")
    habit, chatml, plain = (
        loralab(*arguments, *template).json["rows"][1]["loss"]
        for template in ((), ("--template", "chatml"), ("--template", "plain"))
    )
    assert habit == chatml
    assert habit != plain


# generate, chat


def test_generate_takes_its_prompt_as_an_argument_or_from_a_pipe(bench, loralab, monkeypatch):
    arguments = ("--model", "tiny", "--adapter", "poet", "--max-new-tokens", "6")
    said = loralab("generate", "the little dog", *arguments, "--json").json
    assert said["prompt"] == "the little dog"
    assert loralab("generate", "the little dog", *arguments).out == said["text"] + "\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO("the little dog"))
    assert loralab("generate", *arguments, "--json").json == said
    base = loralab("generate", "the little dog", *arguments[:2], *arguments[4:], "--raw", "--json").json
    assert base["text"] != said["text"]


def test_sampling_repeats_with_its_seed(bench, loralab):
    arguments = (
        "generate",
        "the",
        "--model",
        "tiny",
        "--temperature",
        "1.5",
        "--max-new-tokens",
        "12",
        "--json",
    )
    texts = [loralab(*arguments, "--seed", seed).json["text"] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_chat_reads_a_pipe(bench, loralab, monkeypatch):
    monkeypatch.setattr(
        sys, "stdin", io.StringIO("the dog\n\n  a tree  \n/new\nthe dog\n/quit\nnever read\n")
    )
    result = loralab("chat", "--model", "chatty", "--max-new-tokens", "4", "--json")
    assert result.code == 0
    assert [turn["prompt"] for turn in result.lines] == ["the dog", "a tree", "the dog"]
    first, _, again = [turn["text"] for turn in result.lines]
    assert first == again, "/new forgets what was said"
    monkeypatch.setattr(sys, "stdin", io.StringIO("a tree\n"))
    fresh = loralab("chat", "--model", "chatty", "--max-new-tokens", "4", "--json").lines
    asked = result.lines[1]
    assert fresh[0]["prompt"] == asked["prompt"]


def test_chat_remembers_what_was_said(bench, loralab, monkeypatch, tiny):
    tokenizer = AutoTokenizer.from_pretrained("chatty")
    model = AutoModelForCausalLM.from_pretrained("chatty", dtype=torch.float32)
    monkeypatch.setattr(sys, "stdin", io.StringIO("the dog\na tree\n"))
    turns = loralab("chat", "--model", "chatty", "--max-new-tokens", "4", "--json").lines
    said = [
        {"role": "user", "content": "the dog"},
        {"role": "assistant", "content": turns[0]["text"]},
        {"role": "user", "content": "a tree"},
    ]
    text = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False, return_token_type_ids=False)
    written = model.generate(**inputs, do_sample=False, max_new_tokens=4)
    expected = tokenizer.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert turns[1]["text"] == expected


def test_chat_compares(bench, loralab, monkeypatch):
    arguments = ("--model", "tiny", "--adapter", "poet", "--max-new-tokens", "4")
    monkeypatch.setattr(sys, "stdin", io.StringIO("the dog\na tree\n"))
    turns = loralab("chat", *arguments, "--compare", "--json").lines
    assert [list(turn) for turn in turns] == [["prompt", "base", "adapter"]] * 2
    for turn in turns:
        assert loralab("generate", turn["prompt"], *arguments, "--json").json["text"] == turn["adapter"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("the dog\n"))
    out = loralab("chat", *arguments, "--compare").out
    assert out == f"base> {turns[0]['base']}\nadapter> {turns[0]['adapter']}\n"


# merge, show


@pytest.mark.parametrize("dtype", ["stored", "bfloat16"])
def test_a_merged_model_loses_what_the_adapter_loses(bench, loralab, dtype):
    arguments = ("merge", "--model", "tiny", "--adapter", "poet", "--out", "out/merged", "--dtype", dtype)
    told = loralab(*arguments, "--json").json
    assert len(told["layers"]) == told["modules"] == 15
    assert (told["out"], told["dtype"]) == ("out/merged", "float32" if dtype == "stored" else dtype)
    assert max(told["layers"].values()) >= told["error"]
    assert told["error"] == 0 if dtype == "stored" else 1e-4 < told["error"] < 1
    measure = ("eval", "--data", "eval.jsonl", "--json", "--model")
    base, adapter = (row["loss"] for row in loralab(*measure, "tiny", "--adapter", "poet").json["rows"])
    merged = loralab(*measure, "out/merged").json["rows"][0]["loss"]
    tolerance = 1e-6 if dtype == "stored" else 1e-2
    assert merged == pytest.approx(adapter, rel=tolerance)
    assert merged != pytest.approx(base, rel=1e-2)
    again = loralab(*arguments)
    assert again.code == 2
    assert "out/merged exists already" in again.err
    assert loralab(*arguments, "--overwrite", "--plain").code == 0
    assert [path.name for path in Path("out").iterdir()] == ["merged"]


def test_a_merged_model_needs_no_loralab(bench, loralab):
    loralab("merge", "--model", "tiny", "--adapter", "poet", "--out", "merged")
    model = AutoModelForCausalLM.from_pretrained("merged", dtype=torch.float32)
    inputs = AutoTokenizer.from_pretrained("merged")(
        "the dog", return_tensors="pt", return_token_type_ids=False
    )
    written = model.generate(**inputs, do_sample=False, max_new_tokens=5)
    text = AutoTokenizer.from_pretrained("tiny").decode(written[0], skip_special_tokens=True)
    said = loralab(
        *(
            "generate",
            "the dog",
            "--model",
            "tiny",
            "--adapter",
            "poet",
            "--raw",
            "--max-new-tokens",
            "5",
            "--json",
        )
    ).json
    assert text == "the dog" + said["text"]


def test_show(bench, loralab):
    shown = loralab("show", "poet", "--json").json
    tensors = load_file("runs/poet/adapter/adapter_model.safetensors")
    assert shown["parameters"] == sum(tensor.numel() for tensor in tensors.values())
    assert shown["base"] == "tiny"
    assert len(shown["modules"]) == 15
    assert shown["modules"][0]["module"] == "model.embed_tokens"
    one = shown["modules"][1]
    a = tensors[f"base_model.model.{one['module']}.lora_A.weight"]
    b = tensors[f"base_model.model.{one['module']}.lora_B.weight"]
    assert (one["r"], one["in"], one["out"], one["scaling"]) == (4, a.shape[1], b.shape[0], 8.0)
    assert one["norm"] == pytest.approx(float((8.0 * b @ a).norm()), rel=1e-4)
    lines = loralab("show", "poet", "--plain").out.splitlines()
    assert "base: tiny" in lines
    assert "rank: 4, alpha 32" in lines
    assert f"digest: {shown['digest']}" in lines
    assert lines[-14].split("\t")[:4] == [one["module"], "4", str(one["in"]), str(one["out"])]


# output


@pytest.mark.parametrize(
    "arguments",
    [
        (*TRAIN, "--name", "a"),
        ("runs",),
        ("data", "train.jsonl", "--model", "tiny"),
        ("eval", "--model", "tiny", "--adapter", "poet", "--data", "eval.jsonl"),
        ("generate", "the", "--model", "tiny", "--max-new-tokens", "3"),
        ("merge", "--model", "tiny", "--adapter", "poet", "--out", "m"),
        ("show", "poet"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_plain_output_has_no_colours_and_json_is_json(bench, loralab, arguments, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    plain = loralab(*arguments, "--plain")
    assert (plain.code, plain.err) == (0, "")
    assert plain.out
    assert "\x1b" not in plain.out
    assert "\r" not in plain.out
    again = [word if word not in ("a", "m") else f"{word}2" for word in arguments]
    assert loralab(*again, "--json").lines


def test_a_process_of_its_own_trains_and_writes_plainly_into_a_pipe(bench):
    result = python(*TRAIN, "--name", "own", cwd=bench)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("run: runs/own\nbase: tiny, 14,288 parameters")
    assert "\x1b" not in result.stdout
    assert RunFolder(bench / "runs/own").state().state == "finished"


def test_a_process_of_its_own_refuses(bench):
    result = python("train", "--lerning-rate", "1", cwd=bench)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "loralab: Unknown option: --lerning-rate. Did you mean --learning-rate?\n"


def test_a_process_of_its_own_chats_on_a_pipe(bench):
    arguments = ("chat", "--model", "tiny", "--max-new-tokens", "3", "--json")
    result = python(*arguments, stdin="the\n", cwd=bench)
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["prompt"] == "the"


def test_debug_shows_where_an_error_comes_from(bench, loralab):
    with pytest.raises(ValueError, match="there is no adapter 'nobody'"):
        loralab("show", "nobody", "--debug")
