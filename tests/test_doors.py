"""The doors: in these folders each file is an entry, found by its name and held to its contract."""

import importlib
import inspect
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import pytest
import torch
from fastapi.routing import APIRoute
from torch import nn

from loralab.core import inits, layers
from loralab.core.config import LoraConfig
from loralab.core.registry import Registry
from loralab.core.svd import exact_svd
from loralab.data import checks as data_checks
from loralab.data import formats, sources
from loralab.data.findings import Code
from loralab.data.templates import TEMPLATES, Template
from loralab.data.types import Chat, Text
from loralab.errors import ConfigError, DataError
from loralab.serving.http import routes
from loralab.training import checks as setting_checks
from loralab.training import optimizers, reporters
from loralab.training.config import RunConfig
from loralab.training.evaluation import metrics

SOURCE = Path(__file__).parents[1] / "src"
PACKAGE = SOURCE / "loralab"
MECHANICS = (
    *("activation", "base", "effective", "holding", "mergeable", "parameter", "quantized", "scaled"),
    "switchable",
    "together",
)
"""What stands in core/layers beside the entries."""


def files(folder: str, besides: tuple[str, ...] = ()) -> list[str]:
    """The entries that the folder should have, by its files alone."""
    stems = {path.stem for path in (PACKAGE / folder).glob("*.py")}
    return sorted(stem for stem in stems if not stem.startswith("_") and stem not in besides)


def python(code: str, folder: Path) -> str:
    """What a fresh interpreter that finds the package in `folder` prints."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(
    ("folder", "names", "get"),
    [
        ("core/inits", inits.REGISTRY.names, inits.REGISTRY.get),
        ("core/layers", layers.REGISTRY.names, layers.REGISTRY.get),
        ("data/formats", formats.names(), formats.get),
        ("data/sources", sources.names(), sources.get),
        ("data/checks", data_checks.REGISTRY.names, data_checks.REGISTRY.get),
        ("training/checks", setting_checks.REGISTRY.names, setting_checks.REGISTRY.get),
        ("training/optimizers", optimizers.REGISTRY.names, optimizers.REGISTRY.get),
        ("training/reporters", reporters.REGISTRY.names, reporters.REGISTRY.get),
        ("training/evaluation/metrics", metrics.REGISTRY.names, metrics.REGISTRY.get),
        ("serving/http/routes", routes.REGISTRY.names, routes.REGISTRY.get),
    ],
)
def test_every_file_is_found(folder: str, names: list[str], get: Callable[[str], object]) -> None:
    besides = MECHANICS if folder == "core/layers" else ()
    assert names == files(folder, besides)
    assert names, f"{folder} has no entry"
    for name in names:
        get(name)
        assert importlib.import_module(f"loralab.{folder.replace('/', '.')}.{name}").__doc__
    with pytest.raises(ConfigError, match=f"Did you mean '{names[0]}'"):
        get(f"{names[0]}x")


@pytest.mark.parametrize(
    ("folder", "model", "ask"),
    [
        ("core/inits", "gaussian", "from loralab.core.inits import find_init; find_init('added')"),
        ("core/layers", "linear", "from loralab.core.layers import REGISTRY; REGISTRY.get('added')"),
        ("data/formats", "text", "from loralab.data import formats; formats.get('added')"),
        (
            "data/templates",
            "plain",
            "from loralab.data.templates import TEMPLATES; assert 'added' in TEMPLATES, TEMPLATES",
        ),
        ("data/sources", "jsonl", "from loralab.data import sources; sources.get('added')"),
        ("data/checks", "size", "from loralab.data.checks import REGISTRY; REGISTRY.get('added')"),
        ("training/checks", "length", "from loralab.training.checks import REGISTRY; REGISTRY.get('added')"),
        (
            "training/optimizers",
            "sgd",
            "from loralab.training.optimizers import REGISTRY; REGISTRY.get('added')",
        ),
        (
            "training/reporters",
            "csv",
            "from loralab.training.reporters import check_reporters; check_reporters('added')",
        ),
        (
            "training/evaluation/metrics",
            "exact",
            "from loralab.training.evaluation.metrics import load_metrics; load_metrics(['added'])",
        ),
        (
            "serving/http/routes",
            "health",
            "from loralab.serving.http.routes import REGISTRY; REGISTRY.get('added')",
        ),
    ],
)
def test_a_new_file_is_an_entry(tmp_path: Path, folder: str, model: str, ask: str) -> None:
    copy = tmp_path / "loralab"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    shutil.copyfile(copy / folder / f"{model}.py", copy / folder / "added.py")
    python(ask, tmp_path)


TAKES_LOOKUPS = {name: getattr(inits.REGISTRY.get(name), "LOOKUP", True) for name in files("core/inits")}
"""Whether an initialisation can be used on an embedding."""


def config_for(name: str, weight_OI: torch.Tensor) -> LoraConfig:
    """A config for an initialisation, with what the function it names would have gathered for "layer"."""
    config = LoraConfig(init_lora_weights=name)
    if name == "corda":
        config.corda_config.statistics = {"layer": exact_svd(weight_OI).cut(4).factors()}
    if name == "lora_ga":
        config.lora_ga_config.statistics = {"layer": exact_svd(weight_OI.cos()).cut(8)}
    return config


@pytest.mark.parametrize("name", files("core/inits"))
def test_an_initialisation_asks_for_the_data_it_needs(name: str) -> None:
    entry = inits.REGISTRY.get(name)
    start = inits.Start(
        torch.zeros(4, 24), torch.zeros(16, 4), torch.ones(16, 24), 2.0, "layer", LoraConfig(), False
    )
    if hasattr(entry, "NEEDS"):
        with pytest.raises(ConfigError, match=rf"'layer'.*call {entry.NEEDS}\(model, config") as caught:
            inits.find_init(name)(start)
        assert "\n" not in str(caught.value)
    else:
        inits.find_init(name)(start)


@pytest.mark.parametrize("name", [name for name in files("core/inits") if not TAKES_LOOKUPS[name]])
def test_an_initialisation_refuses_an_embedding_by_name(name: str) -> None:
    start = inits.Start(
        torch.zeros(4, 24), torch.zeros(16, 4), torch.ones(16, 24), 2.0, "layer", LoraConfig(), True
    )
    with pytest.raises(ConfigError, match=f"^'layer': init_lora_weights='{name}'.*exclude the module"):
        inits.find_init(name)(start)


@pytest.mark.parametrize(
    ("name", "lookup"),
    [(name, lookup) for name in files("core/inits") for lookup in {False, TAKES_LOOKUPS[name]}],
)
def test_an_initialisation_fills_both_factors(name: str, lookup: bool) -> None:
    def fresh(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(seed)
        # What torch makes is what an initialisation finds; "random" leaves it.
        missing = torch.randn if name == "random" else partial(torch.full, fill_value=torch.nan)
        a_RI, b_OR = missing((4, 24)), missing((16, 4))
        weight_OI = torch.linspace(-1, 1, 16 * 24).view(16, 24).sin()
        config = config_for(name, weight_OI)
        residual_OI = inits.find_init(name)(inits.Start(a_RI, b_OR, weight_OI, 2.0, "layer", config, lookup))
        assert (residual_OI is not None) is inits.changes_base(name)
        if residual_OI is not None:
            # What LoftQ returns is rounded to 4 bits; the factors bring it nearer, not all the way.
            near = 0.1 if name == "loftq" else 1e-5
            assert torch.allclose(residual_OI + 2 * b_OR @ a_RI, weight_OI, atol=near)
        return a_RI, b_OR

    a_RI, b_OR = fresh(0)
    assert a_RI.isfinite().all()
    assert b_OR.isfinite().all()
    assert a_RI.any() or b_OR.any(), "factors that are both zero never get a gradient"
    assert torch.equal(a_RI, fresh(0)[0])
    assert torch.equal(b_OR, fresh(0)[1])
    if not inits.changes_base(name):
        assert not (torch.equal(a_RI, fresh(1)[0]) and torch.equal(b_OR, fresh(1)[1]))
        starts_at_the_base = bool((b_OR @ a_RI).abs().max() < 1e-6)
        assert starts_at_the_base is (name != "random")


@pytest.mark.parametrize("name", files("core/layers", besides=MECHANICS))
def test_a_layer_kind_has_its_three_parts(name: str) -> None:
    entry = layers.REGISTRY.get(name)
    assert isinstance(entry.LINEAR, bool)
    assert issubclass(entry.Layer, layers.LoraLayer)
    assert not inspect.isabstract(entry.Layer)
    assert list(inspect.signature(entry.matches).parameters) == ["module"]
    for module in (nn.LayerNorm(4), nn.Dropout(), nn.Sequential(nn.Linear(4, 4)), nn.Module()):
        assert entry.matches(module) is False


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(4, 6),
        nn.Linear(4, 6, bias=False, dtype=torch.bfloat16),
        nn.Embedding(9, 4),
        nn.Conv1d(4, 6, 3),
        nn.Conv2d(4, 6, 3),
        nn.Conv3d(4, 6, 3),
    ],
    ids=lambda module: type(module).__name__,
)
def test_a_base_layer_belongs_to_one_kind(module: nn.Module) -> None:
    kinds = [name for name in layers.REGISTRY.names if layers.REGISTRY.get(name).matches(module)]
    assert len(kinds) == 1
    wrapped = layers.wrap(module, "some.path", layers.Activation())
    assert type(wrapped) is layers.REGISTRY.get(kinds[0]).Layer
    assert wrapped.base_layer is module


@pytest.mark.parametrize("name", files("data/templates"))
def test_a_template_is_found_by_its_file(name: str) -> None:
    assert name.replace("_", "-") in TEMPLATES
    module = importlib.import_module(f"loralab.data.templates.{name}")
    assert module.__doc__
    assert issubclass(module.Layout, Template)
    assert not inspect.isabstract(module.Layout)


@pytest.mark.parametrize("name", files("data/sources"))
def test_a_kind_of_data_takes_what_is_its_own(name: str, tmp_path: Path) -> None:
    kind = sources.get(name)
    assert kind.what
    assert list(inspect.signature(kind.read).parameters) == ["path", "name"]
    assert not kind.takes(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    assert not kind.takes(tmp_path / "empty")
    for suffix in kind.suffixes:
        path = tmp_path / f"rows{suffix}"
        path.touch()
        takers = [other for other in sources.names() if sources.get(other).takes(path)]
        assert takers == [name]
        assert (kind.files(path), kind.unread(path)) == ([path], [])
        with pytest.raises(DataError) as caught:
            list(kind.read(path, path.name))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("door", "name"),
    [
        (door, name)
        for door in (data_checks.REGISTRY, setting_checks.REGISTRY)
        for name in files(door.package.removeprefix("loralab.").replace(".", "/"))
    ],
    ids=lambda value: value if isinstance(value, str) else value.package,
)
def test_a_check_says_what_it_can_find(door: Registry, name: str) -> None:
    entry = door.get(name)
    assert entry.CODES
    assert all(isinstance(code, Code) for code in entry.CODES)
    assert list(inspect.signature(entry.check).parameters) == ["given"]


def test_the_settings_know_every_optimizer() -> None:
    known = get_args(RunConfig.model_fields["optimizer"].annotation)
    assert sorted(name.replace("-", "_") for name in known) == files("training/optimizers")


@pytest.mark.parametrize("name", files("training/optimizers"))
def test_an_optimizer_moves_a_matrix_by_its_rate(name: str) -> None:
    entry = optimizers.REGISTRY.get(name)
    assert entry.STATES >= 0
    matrix_OI = nn.Parameter(torch.linspace(-1, 1, 64 * 64).view(64, 64))
    before_OI = matrix_OI.detach().clone()
    group = {"params": [matrix_OI], "lr_scale": 2.0, "weight_decay": 0.0, "lr": 0.0}
    optimizer = entry.make([group], RunConfig())
    assert isinstance(optimizer, torch.optim.Optimizer)
    optimizers.set_rate(optimizer, 0.0)
    assert optimizer.param_groups[0]["lr_scale"] == 2.0
    for rate in (0.0, 1e-2):
        optimizers.set_rate(optimizer, rate)
        matrix_OI.grad = before_OI.sin()
        optimizer.step()
        assert torch.equal(matrix_OI, before_OI) is (rate == 0.0)


@pytest.mark.parametrize("name", files("training/reporters"))
def test_a_reporter_opens_takes_in_and_closes(name: str) -> None:
    entry = reporters.REGISTRY.get(name)
    assert isinstance(entry.NEEDS, str)
    methods = {"__init__": ["folder", "config"], "add": ["event"], "close": []}
    for method, wanted in methods.items():
        assert list(inspect.signature(getattr(entry.Reporter, method)).parameters)[1:] == wanted


def test_a_reporter_is_asked_without_its_package() -> None:
    asked = "; ".join(f"REGISTRY.get({name!r})" for name in files("training/reporters"))
    python(
        f"import sys; from loralab.training.reporters import REGISTRY; {asked}\n"
        "assert not {'tensorboard', 'wandb', 'trackio'} & set(sys.modules)",
        SOURCE,
    )


@pytest.mark.parametrize("name", files("training/evaluation/metrics"))
def test_a_metric_prefers_right_answers(name: str) -> None:
    entry = metrics.REGISTRY.get(name)
    assert not entry.PACKAGE or find_spec(entry.PACKAGE)
    right = ["A cow eats grass in the field.", "The sky is blue, and so is the sea."]
    best = entry.score(right, [[text] for text in right])
    worst = entry.score(["No.", "Never."], [[text] for text in right])
    assert best.keys() == worst.keys() != set()
    assert all(best[column] > worst[column] >= 0 for column in best)


@pytest.mark.parametrize("name", files("serving/http/routes"))
def test_a_group_of_routes_says_what_each_is_for(name: str) -> None:
    entries = [route for route in routes.REGISTRY.get(name).router.routes if isinstance(route, APIRoute)]
    assert entries
    for route in entries:
        assert route.tags, route.path
        assert route.description, route.path


@pytest.mark.parametrize("name", files("data/formats"))
def test_a_format_is_detected_by_its_columns(name: str) -> None:
    entry = formats.get(name)
    assert entry.columns
    assert not set(entry.columns) & set(entry.optional)
    assert entry.template in TEMPLATES
    for columns in (entry.columns, (*entry.columns, *entry.optional), (*entry.columns, "of_no_use")):
        assert formats.detect(columns, "rows.jsonl:1") == entry


@pytest.mark.parametrize("name", files("data/formats"))
@pytest.mark.parametrize("value", [None, 7, {"no": "text"}, [], [None], [{}]], ids=repr)
def test_a_format_refuses_what_is_no_text(name: str, value: object) -> None:
    entry = formats.get(name)
    with pytest.raises(DataError, match=r"^rows\.jsonl:7: ") as caught:
        entry.parse(dict.fromkeys(entry.columns, value), "rows.jsonl:7")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", files("data/formats"))
def test_a_format_reads_text_or_a_chat(name: str) -> None:
    turns = {
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}],
        "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}],
        "chosen": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}],
    }
    entry = formats.get(name)
    row = {column: turns.get(column, "ho") for column in entry.columns}
    parsed = entry.parse(row, "rows.jsonl:1")
    assert isinstance(parsed, Text | Chat)
    last = parsed.text if isinstance(parsed, Text) else parsed.messages[-1].content
    assert last == "ho"


def loralab(*arguments: str) -> str:
    """What the command line prints; it must not import torch for that."""
    code = (
        f"import sys; from loralab.cli.main import main; sys.argv = {['loralab', *arguments]!r}\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules, 'help imports torch'"
    )
    return python(code, SOURCE)


@pytest.mark.parametrize("name", files("cli/commands"))
def test_a_command_has_help(name: str) -> None:
    if find_spec("loralab.cli.main") is None:
        pytest.skip("there is no command line yet")
    command = name.strip("_").replace("_", "-")
    assert command in loralab("--help").split()
    assert f"loralab {command}" in loralab(command, "--help")
