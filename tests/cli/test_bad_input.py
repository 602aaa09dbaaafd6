"""Bad input: one line that says what, where and what to do; exit code 2; nothing written, nothing lost."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from loralab.training.folder import RunFolder, RunState

MODEL = "--model tiny"
TRAIN = f"train {MODEL} --max-steps 2"
EVAL = f"eval {MODEL} --data eval.jsonl"
BASE = "eval --data eval.jsonl --model"
GOOD = '{"prompt": "a", "completion": "dog"}\n'


def write(name: str, content: str | bytes) -> Callable[[], None]:
    """Make a file."""
    return lambda: (
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode()) and None
    )


def base(change: Callable[[Path], object]) -> Callable[[], None]:
    """Make a base model, "bad", from the tiny one."""

    def make() -> None:
        shutil.copytree("tiny", "bad")
        change(Path("bad"))

    return make


def adapter(change: Callable[[Path], object]) -> Callable[[], None]:
    """Make an adapter, "bad", from that of the run."""

    def make() -> None:
        shutil.copytree("runs/poet/adapter", "bad")
        change(Path("bad"))

    return make


def cut(name: str, share: float = 0.5) -> Callable[[Path], object]:
    """Truncate a file."""

    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * share)])

    return change


def remove(*names: str) -> Callable[[Path], object]:
    """Delete files."""
    return lambda folder: [(folder / name).unlink() for name in names]


def pickle(folder: Path) -> None:
    """Turn safetensors into a pickle, as people used to share weights."""
    name = "pytorch_model.bin" if (folder / "config.json").exists() else "adapter_model.bin"
    for path in folder.glob("*.safetensors"):
        torch.save(load_file(path), folder / name)
        path.unlink()


def lose_a_tensor(folder: Path) -> None:
    """Write the weights without one of them."""
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def no_finite_weight(folder: Path) -> None:
    """An adapter that would make weights infinite."""
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(
        {key: tensor + float("inf") for key, tensor in tensors.items()}, folder / "adapter_model.safetensors"
    )


@dataclass(frozen=True)
class Case:
    """A command line, the words of its refusal, and what is made before."""

    arguments: str
    said: str
    make: Callable[[], object] = lambda: None


CASES = {
    # data
    "data missing": Case(
        f"{TRAIN} --data trian.jsonl", r"trian\.jsonl: no such file\. Did you mean 'train\.jsonl'"
    ),
    "data empty": Case(
        f"{TRAIN} --data bad.jsonl", r"bad\.jsonl: the file is empty", write("bad.jsonl", " \n")
    ),
    "data a folder": Case(f"{TRAIN} --data runs", "runs: this is a folder; name a file in it"),
    "data of an unknown kind": Case(
        f"{TRAIN} --data bad.xlsx",
        r"bad\.xlsx: files that end in '\.xlsx' cannot be read; convert it to \.csv, .*\.json",
        write("bad.xlsx", GOOD),
    ),
    "malformed JSON": Case(
        f"{TRAIN} --data bad.jsonl",
        r"bad\.jsonl:3: malformed JSON at column 12: ",
        write("bad.jsonl", GOOD + "\n" + '{"prompt": a}\n'),
    ),
    "malformed JSON, .json": Case(
        f"{TRAIN} --data bad.json", r"bad\.json:2: malformed JSON", write("bad.json", f"[{GOOD},,]")
    ),
    "not UTF-8": Case(
        f"{TRAIN} --data bad.txt",
        r"bad\.txt:2: not UTF-8: byte 4 .*Save the file as UTF-8",
        write("bad.txt", b"a\nbcd\xff"),
    ),
    "unknown columns": Case(
        f"{TRAIN} --data bad.jsonl",
        r"bad\.jsonl:1: row has columns 'promt', 'completion'; .*'promt'\? Did you mean 'prompt'",
        write("bad.jsonl", '{"promt": "a", "completion": "b"}\n'),
    ),
    "unknown columns further down": Case(
        f"{TRAIN} --data bad.jsonl",
        r"bad\.jsonl:2: row has columns 'prompt'; format 'completion' needs 'prompt', 'completion'",
        write("bad.jsonl", GOOD + '{"prompt": "a"}\n'),
    ),
    "ambiguous columns": Case(
        f"{TRAIN} --data bad.jsonl",
        r"bad\.jsonl:1: the columns fit the formats 'completion', 'text'; say which: --format completion or",
        write("bad.jsonl", '{"prompt": "a", "completion": "b", "text": "c"}\n'),
    ),
    "a column of another kind": Case(
        f"{TRAIN} --data bad.jsonl",
        r"bad\.jsonl:2: 'completion' must be a string, found a number",
        write("bad.jsonl", GOOD + '{"prompt": "a", "completion": 7}\n'),
    ),
    "no row short enough": Case(
        f"{TRAIN} --data train.jsonl --cutoff-length 3",
        r"none of 12 rows can be trained on: 12 longer than cutoff_length 3\. The shortest has \d+ tokens",
    ),
    "no row with an answer": Case(
        f"{TRAIN} --data bad.jsonl",
        r"bad\.jsonl: none of 1 rows can be trained on: 1 with nothing to train on",
        write("bad.jsonl", '{"prompt": "a", "completion": " "}\n'),
    ),
    "evaluation data missing": Case(
        f"{TRAIN} --data train.jsonl --eval-data no.jsonl", r"no\.jsonl: no such file"
    ),
    "data name too long": Case(f"{TRAIN} --data {'x' * 300}.jsonl", "no such file"),
    # words
    "unknown command": Case("trian", r'Unknown command "trian"\. Did you mean "train"'),
    "unknown flag": Case(
        f"{TRAIN} --lora-alfa 3", r"Unknown option: --lora-alfa\. Did you mean --lora-alpha"
    ),
    "unknown flag of another command": Case(f"{EVAL} --adaptor poet", "--adaptor.*Did you mean --adapter"),
    "flag without its value": Case(f"{TRAIN} --r", "--r"),
    "flag of another kind": Case(f"{TRAIN} --r two", "r is 'two': input should be a valid integer"),
    "model missing": Case("eval --data eval.jsonl", "--model"),
    "model left out": Case("train --data train.jsonl", "no model was given; add --model"),
    "data left out": Case(f"train {MODEL}", "no data was given; add --data"),
    # settings
    "unknown TOML key": Case(
        "train bad.toml", r"bad\.toml: unknown setting 'lr'.*", write("bad.toml", "lr = 3\n")
    ),
    "unknown TOML key with a hint": Case(
        "train bad.toml",
        r"bad\.toml: unknown setting 'lora_alfa'\. Did you mean 'lora_alpha'",
        write("bad.toml", "lora_alfa = 3\n"),
    ),
    "TOML malformed": Case(
        "train bad.toml", r"bad\.toml: not valid TOML: .*line 1", write("bad.toml", "r = = 3\n")
    ),
    "TOML not UTF-8": Case(
        "train bad.toml", r"bad\.toml: not valid TOML", write("bad.toml", b"r = '\xff'\n")
    ),
    "TOML missing": Case("train no.toml", r"no\.toml: no such file"),
    "TOML a folder": Case("train runs", "runs: is a folder; expected a TOML file"),
    "TOML name too long": Case(f"train {'x' * 300}.toml", r"x\.toml: cannot be read \(File name too long\)"),
    "r 0": Case(f"{TRAIN} --data train.jsonl --r 0", "r is '0': input should be greater than or equal to 1"),
    "r negative": Case(f"{TRAIN} --data train.jsonl --r=-4", "r is '-4': input should be greater"),
    "alpha 0": Case(
        f"{TRAIN} --data train.jsonl --lora-alpha 0", "lora_alpha is '0': input should be greater than 0"
    ),
    "alpha negative": Case(f"{TRAIN} --data train.jsonl --lora-alpha=-1", "lora_alpha is '-1': "),
    "micro-batch": Case(
        f"{TRAIN} --data train.jsonl --batch-size 8 --micro-batch-size 3",
        "micro_batch_size 3 does not divide batch_size 8",
    ),
    "overlap": Case(
        f"{TRAIN} --data train.jsonl --cutoff-length 8 --overlap-length 8",
        "overlap_length 8 must be less than cutoff_length 8",
    ),
    "overlap without effect": Case(
        f"{TRAIN} --data train.jsonl --overlap-length 8", "overlap_length 8 has no effect: only documents"
    ),
    "template without effect": Case(
        f"{TRAIN} --data bad.txt --template alpaca",
        "template 'alpaca' has no effect",
        write("bad.txt", "the dog"),
    ),
    "cutoff beyond the positions": Case(
        f"{TRAIN} --data train.jsonl --cutoff-length 500",
        "cutoff_length is 500, but tiny has 128 positions; use --cutoff-length 128 or less",
    ),
    "cutoff beyond the positions, data": Case(
        f"data train.jsonl {MODEL} --cutoff-length 500", "cutoff_length is 500, but tiny has 128 positions"
    ),
    "cutoff 0, data": Case(f"data train.jsonl {MODEL} --cutoff-length 0", "cutoff_length.*equal to 2"),
    "show negative": Case(f"data train.jsonl {MODEL} --show=-1", "show is -1; expected 0 or more"),
    "targets match nothing": Case(
        f"{TRAIN} --data train.jsonl --target-modules q_prj",
        "'q_prj'.*matches no module.*Did you mean 'q_proj'",
    ),
    "one target matches nothing": Case(
        f"{TRAIN} --data train.jsonl --target-modules v_proj,q_prj",
        "'q_prj' matches no module.*Did you mean 'q_proj'",
    ),
    "no targets": Case(f"{TRAIN} --data train.jsonl --target-modules=", "matches no module.*'all-linear'"),
    "targets no regex": Case(
        f"{TRAIN} --data train.jsonl --target-modules (q", r"'\(q' is not a regular expression"
    ),
    "scheduler": Case(
        f"{TRAIN} --data train.jsonl --lr-scheduler cosin", "'linear', 'cosine', 'constant', .* or 'wsd'"
    ),
    "dtype": Case(f"{TRAIN} --data train.jsonl --dtype int8", "dtype is 'int8': .*'bfloat16'"),
    "dtype, eval": Case(f"{EVAL} --dtype int8", "dtype is 'int8'"),
    "dtype, merge": Case(
        f"merge {MODEL} --adapter poet --out m --dtype int8", "dtype is 'int8'; expected auto, float32"
    ),
    "format": Case(
        f"{TRAIN} --data train.jsonl --format alpacca", "unknown data format.*Did you mean 'alpaca'"
    ),
    "template": Case(
        f"{TRAIN} --data train.jsonl --template alpacca", "unknown template.*Did you mean 'alpaca'"
    ),
    "seed too large": Case(f"{TRAIN} --data train.jsonl --seed {2**70}", "seed is .*less than 4294967296"),
    "micro-batch 0, eval": Case(f"{EVAL} --micro-batch-size 0", "micro_batch_size is '0'"),
    # names
    "run exists": Case(
        f"{TRAIN} --data train.jsonl --name poet",
        r"there is a run 'poet' in runs already; go on with 'loralab resume poet', .*--name.*--overwrite",
    ),
    "a path as a name": Case(
        f"{TRAIN} --data train.jsonl --name ../poet", r"name is '\.\./poet': expected .*letters"
    ),
    "a slash in a name": Case(
        f"{TRAIN} --data train.jsonl --name a/b", "name is 'a/b': expected .*no path in it"
    ),
    "a name too long": Case(f"{TRAIN} --data train.jsonl --name {'x' * 300}", "expected up to 100 letters"),
    "overwriting what is no run": Case(
        f"{TRAIN} --data train.jsonl --runs . --name tiny --overwrite",
        "tiny exists and is no run; choose another",
    ),
    "runs is a file": Case(
        f"{TRAIN} --data train.jsonl --runs eval.jsonl", r"eval\.jsonl: is a file; --runs takes"
    ),
    "runs is a file, named run": Case(
        f"{TRAIN} --data train.jsonl --runs eval.jsonl --name a",
        r"eval\.jsonl: is a file; --runs takes",
    ),
    "runs below a file": Case(
        f"{TRAIN} --data train.jsonl --runs eval.jsonl/runs --name a",
        r"eval\.jsonl/runs/a: cannot be written \(Not a directory\); nothing was written",
    ),
    "runs is a file, runs": Case("runs --runs eval.jsonl", r"eval\.jsonl: is a file; --runs takes"),
    "runs is a file, resume": Case("resume poet --runs eval.jsonl", r"eval\.jsonl: is a file; --runs takes"),
    "resume an unknown run": Case("resume poe", "there is no run 'poe' in runs; .*Did you mean 'poet'"),
    "resume a name too long": Case(f"resume {'x' * 300}", "there is no run 'xxx"),
    "resume a finished run": Case("resume poet", "run 'poet' is finished; its adapter is runs/poet/adapter"),
    # bases
    "base missing": Case(f"{BASE} ./tinny", r"\./tinny: no such folder; --model takes a folder, a hub id"),
    "base neither here nor on the hub": Case(
        f"{BASE} tinny",
        r"tinny: neither a folder here nor a model on the hub \(the hub could not be reached",
    ),
    "base a file": Case(f"{BASE} eval.jsonl", r"eval\.jsonl: is a file; --model takes the folder"),
    "base without config": Case(
        f"{BASE} bad",
        r"bad: no config\.json there, so it is no base model",
        base(remove("config.json")),
    ),
    "base that is an adapter": Case(
        f"{BASE} runs/poet/adapter", r"no config\.json.*It holds an adapter: name that with --adapter"
    ),
    "base with a damaged config": Case(
        f"{BASE} bad", r"bad: cannot be loaded: .*config\.json", base(cut("config.json"))
    ),
    "base without weights": Case(
        f"{BASE} bad",
        r"bad: cannot be loaded: .*model\.safetensors",
        base(remove("model.safetensors")),
    ),
    "base truncated": Case(
        f"{BASE} bad",
        r"bad: the weights are damaged or truncated .*; copy them again",
        base(cut("model.safetensors")),
    ),
    "base of no bytes": Case(
        f"{BASE} bad", "bad: the weights are damaged or truncated", base(cut("model.safetensors", 0))
    ),
    "base with a tensor missing": Case(
        f"{BASE} bad",
        r"bad: 1 of its weights .*model\.layers\.1\.mlp\.up_proj\.weight is missing",
        base(lose_a_tensor),
    ),
    "base of another shape": Case(
        f"{BASE} bad",
        r"bad: \d+ of its weights .*\[300, 16\], config\.json says \[300, 32\]",
        base(lambda folder: shutil.copy("wide/config.json", folder)),
    ),
    "base that is a pickle": Case(
        f"{BASE} bad", "bad: its weights are a pickle file.*any program.*--allow-pickle", base(pickle)
    ),
    "tokenizer missing": Case(
        f"{BASE} bad",
        "bad: cannot be loaded: .*tokenizer",
        base(remove("tokenizer.json", "tokenizer_config.json")),
    ),
    "tokenizer truncated": Case(f"{BASE} bad", "bad: ", base(cut("tokenizer.json"))),
    # adapters
    "adapter missing": Case(
        f"{EVAL} --adapter poe", "there is no adapter 'poe': .*not a run in runs.*Did you mean 'poet'"
    ),
    "adapter name too long": Case(f"{EVAL} --adapter {'x' * 300}", "there is no adapter 'xxx"),
    "adapter neither here nor on the hub": Case(
        f"{EVAL} --adapter some/one", "there is no adapter 'some/one': .*not on the hub"
    ),
    "adapter that is a base": Case(f"{EVAL} --adapter tiny", r"tiny: no adapter_config\.json there"),
    "adapter of a run that has none yet": Case(
        f"{EVAL} --adapter poet",
        "run 'poet' has no adapter yet; 'loralab resume poet'",
        lambda: shutil.rmtree("runs/poet/adapter"),
    ),
    "adapter truncated": Case(
        f"{EVAL} --adapter bad",
        r"bad/adapter_model\.safetensors: not a complete safetensors file.*copy or train it again",
        adapter(cut("adapter_model.safetensors")),
    ),
    "adapter of no bytes": Case(
        f"{EVAL} --adapter bad",
        "not a complete safetensors file",
        adapter(cut("adapter_model.safetensors", 0)),
    ),
    "adapter config truncated": Case(
        f"{EVAL} --adapter bad",
        r"bad/adapter_config\.json:\d+: not valid JSON",
        adapter(cut("adapter_config.json")),
    ),
    "adapter habits truncated": Case(
        f"{EVAL} --adapter bad", r"bad/loralab\.json: damaged", adapter(cut("loralab.json"))
    ),
    "adapter without weights": Case(
        f"{EVAL} --adapter bad",
        "bad: no adapter_model.safetensors beside",
        adapter(remove("adapter_model.safetensors")),
    ),
    "adapter that is a pickle": Case(
        f"{EVAL} --adapter bad",
        r"adapter_model\.bin: a pickle file, .*any program.*--allow-pickle",
        adapter(pickle),
    ),
    "adapter that is a pickle, show": Case("show bad", "a pickle file.*--allow-pickle", adapter(pickle)),
    "adapter of another base": Case(
        f"{BASE} wide --adapter poet",
        r"does not fit this LlamaForCausalLM: 29 of 30 tensors differ\. model\.embed_tokens\.\S+ "
        r"is \[16, 4\], the model needs \[32, 4\]\. Was it trained on another base\? It says: tiny",
    ),
    "adapter that is not finite, merge": Case(
        f"merge {MODEL} --adapter bad --out m", "not finite", adapter(no_finite_weight)
    ),
    # the rest
    "merge onto a base": Case(
        f"merge {MODEL} --adapter poet --out tiny --overwrite", "tiny is, holds or lies in .*still needed"
    ),
    "merge onto all runs": Case(
        f"merge {MODEL} --adapter poet --out runs --overwrite", "runs is, holds or lies in .*still needed"
    ),
    "merge onto a result": Case(
        f"merge {MODEL} --adapter poet --out wide", "wide exists already; .*--out.*--overwrite"
    ),
    "merge onto somebody's work": Case(
        f"merge {MODEL} --adapter poet --out mine --overwrite",
        r"mine holds 'thesis\.txt', which is not ours to delete",
        lambda: (Path("mine").mkdir(), Path("mine/thesis.txt").write_text("x")),
    ),
    "evaluation without data": Case(
        f"{TRAIN} --data train.jsonl --eval-steps 5", "eval_steps has no effect without eval_data"
    ),
    "regex of a part": Case(
        f"{TRAIN} --data train.jsonl --target-modules q_proj|v_proj",
        r"whole name: try '\.\*\(q_proj\|v_proj\)'",
    ),
    "merge onto a file": Case(
        f"merge {MODEL} --adapter poet --out eval.jsonl", r"eval\.jsonl is a file; --out names a folder"
    ),
    "merge below a file": Case(
        f"merge {MODEL} --adapter poet --out eval.jsonl/m", r"eval\.jsonl/m: cannot be written"
    ),
    "merge of the wrong base": Case("merge --model wide --adapter poet --out m", "29 of 30 tensors differ"),
    "prompt empty": Case(f"generate {MODEL} ''", "the prompt is empty"),
    "prompt too long": Case(f"generate {MODEL} {'the ' * 200}".rstrip(), "Unused Tokens|no room to answer"),
    "temperature": Case(f"generate the {MODEL} --temperature=-1", "temperature is -1.0; expected 0"),
    "temperature not a number": Case(f"generate the {MODEL} --temperature nan", "temperature is nan"),
    "top-p": Case(f"generate the {MODEL} --top-p 0", "top_p is 0.0; expected a share above 0, up to 1"),
    "no new tokens": Case(f"generate the {MODEL} --max-new-tokens 0", "max_new_tokens is 0"),
    "nothing to compare": Case(
        f"chat {MODEL} --compare", "--compare sets an adapter beside the base; name one"
    ),
}


def snapshot(folder: Path) -> dict[str, str]:
    """Every file and folder below, with a digest of its bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


def check_refused(result, said: str) -> None:
    assert (result.code, result.out) == (2, "")
    assert re.fullmatch(r"loralab: [^\n]*\n", result.err), result.err
    assert re.search(said, result.err), result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_bad_input(bench, loralab, case):
    case.make()
    before = snapshot(bench)
    arguments = [word.strip("'") for word in case.arguments.split(" ")]
    check_refused(loralab(*arguments), case.said)
    assert snapshot(bench) == before


def test_a_prompt_that_fills_the_model_is_refused(bench, loralab):
    before = snapshot(bench)
    result = loralab("generate", "the " * 200, "--model", "tiny")
    check_refused(result, r"the prompt has \d+ tokens and the model 128 positions: no room to answer")
    assert snapshot(bench) == before


def test_all_faults_of_a_file_are_told_at_once(bench, loralab):
    Path("bad.toml").write_text('r = 0\nlora_alfa = 3\nlr_scheduler = "cosin"\n')
    check_refused(loralab("train", "bad.toml"), "(?=.*r is 0)(?=.*'lora_alfa')(?=.*'cosin')")


def test_rows_that_cannot_be_trained_on_are_kept_with_the_reason(bench, loralab, tiny):
    rows = [*tiny.make_rows(3), {"prompt": "a", "completion": "dog " * 90}, {"prompt": "a", "completion": ""}]
    tiny.write_jsonl(Path("mixed.jsonl"), rows)
    result = loralab(
        *("train", "--model", "tiny", "--data", "mixed.jsonl", "--name", "a", "--max-steps", "1"),
        *("--cutoff-length", "60"),
    )
    assert result.code == 0
    assert "3 examples" in result.out
    assert "2 rows rejected, see rejected.jsonl" in result.out
    rejected = [json.loads(line) for line in Path("runs/a/rejected.jsonl").read_text().splitlines()]
    assert [(entry["source"], entry["row"]) for entry in rejected] == [
        ("mixed.jsonl:4", rows[3]),
        ("mixed.jsonl:5", rows[4]),
    ]
    assert re.fullmatch(r"longer than cutoff_length 60: \d+ tokens", rejected[0]["reason"])


def test_a_loss_that_is_not_finite(bench, loralab):
    result = loralab(
        *("train", "--model", "tiny", "--data", "train.jsonl", "--name", "hot", "--max-steps", "4"),
        *("--learning-rate", "1e30", "--lr-scheduler", "constant", "--dtype", "float32"),
    )
    assert result.code == 2
    assert re.fullmatch(
        r"loralab: the loss is not finite at step 2, with learning rate 1\.00e\+30; what was saved "
        r"before is kept\. Try a lower --learning-rate or --lora-alpha, or --dtype float32 if it is not\.\n",
        result.err,
    )
    run = RunFolder(Path("runs/hot"))
    assert run.state().state == "failed"
    assert [path.name for path in run.checkpoints.iterdir()] == ["000001"]
    assert not run.adapter.exists()


def test_resuming_a_run_that_is_running(bench, loralab):
    run = RunFolder(Path("runs/poet"))
    run.write_state(RunState())
    with run.hold():
        before = snapshot(bench)
        check_refused(loralab("resume", "poet"), r"run 'poet' is running now, as process \d+")
        assert snapshot(bench) == before


def test_resuming_from_a_truncated_checkpoint(bench, loralab):
    run = RunFolder(Path("runs/poet"))
    run.write_state(RunState("failed"))
    cut("training.safetensors")(run.checkpoint(4))
    before = snapshot(bench)
    result = loralab("resume", "poet", "--json")
    check_refused(
        result,
        "checkpoints/000004: not a complete checkpoint .*Delete that folder to go on from the one before",
    )
    assert run.state().state == "failed"
    assert run.state().note in result.err
    after = snapshot(bench)
    assert {path for path in before if after[path] != before[path]} == {"runs/poet/run.json"}
    shutil.rmtree(run.checkpoint(4))
    assert loralab("resume", "poet").code == 0


@pytest.mark.parametrize("arguments", [f"{BASE} bad --allow-pickle", f"{EVAL} --adapter bad --allow-pickle"])
def test_a_pickle_is_read_when_asked_for(bench, loralab, arguments):
    (base if "--model bad" in arguments else adapter)(pickle)()
    plain = EVAL if "--model bad" in arguments else EVAL + " --adapter poet"
    found, expected = (loralab(*words.split(), "--again", "--json") for words in (arguments, plain))
    assert (found.code, found.err) == (0, "")
    losses, wanted = ([row["loss"] for row in result.json["rows"]] for result in (found, expected))
    assert losses == wanted
