"""Time adapters on a model against PEFT in one process: python benchmarks/adapters.py [--quick] [--json].

Ratios are to the first case of a table: ours, or the base model. Whether other adapters cost time that are
loaded too is seen in the tables that say how many. Extraction and resizing, against a full SVD, are those of
tools.py.
"""

import copy
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
from measure import Case, Table, arguments, race, report, show
from peft.helpers import DoraCaching
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import loralab
from tools import extraction, resizing

Tables = dict[str, Table]
Models = dict[str, Any]
"""The adapted models by library."""
LIBRARIES: dict[str, Any] = {"loralab": loralab, "peft": peft}


@dataclass(frozen=True)
class Size:
    """How large the models are and how often things are done."""

    large: tuple[int, ...] = (32000, 4096, 11008, 32, 32)
    """Vocabulary, width, inner width, layers and heads of a model on the meta device, without numbers."""
    small: tuple[int, ...] = (8192, 768, 2048, 8, 12)
    rank: int = 16
    others: tuple[int, ...] = (0, 4, 16, 64)
    """How many more adapters are loaded while one is worked with."""
    batches: tuple[tuple[int, int], ...] = ((16, 1), (4, 128))
    """Rows and tokens."""
    mixed: tuple[tuple[int, int], ...] = ((8, 1), (8, 64))
    rounds: int = 9
    cycles: int = 5
    """Of merging and unmerging."""


QUICK = Size(
    large=(256, 64, 128, 2, 4),
    small=(256, 64, 128, 2, 4),
    rank=4,
    others=(0, 2),
    batches=((2, 1), (2, 8)),
    mixed=((2, 1), (2, 8)),
    rounds=2,
    cycles=2,
)


def llama(shape: tuple[int, ...], device: str = "cpu") -> nn.Module:
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    with torch.device(device):
        return LlamaForCausalLM(LlamaConfig(**dict(zip(names, shape, strict=True)))).to(torch.bfloat16).eval()


def settings(name: str, size: Size, **more: Any) -> Any:
    """Return the config of an adapter on every linear layer, with a delta that is not zero."""
    return LIBRARIES[name].LoraConfig(
        r=size.rank, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False, **more
    )


def pair(size: Size, folder: Path, **more: Any) -> tuple[nn.Module, Models]:
    """Return a base model, and two copies of it with one adapter, which is left in `folder`."""
    base = llama(size.small)
    ours = loralab.get_peft_model(copy.deepcopy(base), settings("loralab", size, **more)).eval()
    ours.save_pretrained(folder)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), folder).eval()
    return base, {"loralab": ours, "peft": theirs}


def load(model: Any, folder: Path, names: Iterable[str]) -> None:
    for name in names:
        model.load_adapter(folder, name)


def attaching(size: Size) -> Tables:
    """Adapters on all linear layers of a large model without numbers."""
    base = llama(size.large, "meta")
    made: list[Any] = []

    def attach(name: str, **more: Any) -> Case:
        make = LIBRARIES[name].get_peft_model
        return Case(
            lambda: made.append(make(base, settings(name, size), **more)),  # PEFT writes into the config
            lambda: made.pop().unload(),
        )

    cases = {"loralab": attach("loralab"), "peft": attach("peft", low_cpu_mem_usage=True)}
    return {"get_peft_model on the meta device": race(cases, size.rounds)}


def managing(size: Size, folder: Path) -> Tables:
    """What is done with one adapter while others are loaded."""
    _, models = pair(size, folder)
    tables = {}
    loaded = 0
    for others in size.others:
        for model in models.values():
            load(model, folder, [f"other{number}" for number in range(loaded, others)])
        loaded = others
        found = managing_one(models, size, folder)
        tables |= {f"{title}, beside {1 + others}": table for title, table in found.items()}
    return tables


def managing_one(models: Models, size: Size, folder: Path) -> Tables:
    def cases(work: Callable[[str, Any], Any], undo: Callable[[str, Any], Any]) -> dict[str, Case]:
        return {name: Case(partial(work, name, m), partial(undo, name, m)) for name, m in models.items()}

    def read(_: str, model: Any) -> None:
        model.load_adapter(folder, "one")

    def delete(_: str, model: Any) -> None:
        model.delete_adapter("one")

    def add(name: str, model: Any) -> None:
        model.add_adapter("one", settings(name, size))

    def disable(_: str, model: Any) -> None:
        with model.disable_adapter():
            pass

    def save(name: str, model: Any) -> None:
        model.save_pretrained(folder / name, selected_adapters=["default"])

    def nothing(_: str, model: Any) -> None:
        pass

    loads = cases(read, delete)
    fast = partial(models["peft"].load_adapter, folder, "one", low_cpu_mem_usage=True)
    loads["peft, low_cpu_mem_usage"] = Case(lambda: fast() and None, loads["peft"].undo)
    tables = {"load_adapter": race(loads, size.rounds), "add_adapter": race(cases(add, delete), size.rounds)}
    for model in models.values():
        model.load_adapter(folder, "one")
    switches = cases(lambda _, m: m.set_adapter("one"), lambda _, m: m.set_adapter("default"))
    tables["set_adapter"] = race(switches, size.rounds)
    tables["delete_adapter"] = race(cases(delete, read), size.rounds)
    for model in models.values():
        model.delete_adapter("one")
    tables["disable_adapter"] = race(cases(disable, nothing), size.rounds)
    tables["save_pretrained"] = race(cases(save, nothing), size.rounds)
    return tables


def merging(size: Size, folder: Path) -> Tables:
    """Adapters into the base's weights and out again. Ours also says how much of a delta rounding took."""
    _, models = pair(size, folder)
    for model in models.values():
        load(model, folder, ["one"])
    ours, theirs = models["loralab"], models["peft"]

    def swap(name: str) -> None:
        theirs.unmerge_adapter()
        theirs.merge_adapter([name])

    merges = {name: Case(m.merge_adapter, m.unmerge_adapter) for name, m in models.items()}
    safely = partial(theirs.merge_adapter, safe_merge=True)
    merges["peft, safe_merge"] = Case(safely, theirs.unmerge_adapter)
    tables = {"merge_adapter": race(merges, size.rounds)}
    for model in models.values():
        model.merge_adapter()
    unmerges = {name: Case(m.unmerge_adapter, m.merge_adapter) for name, m in models.items()}
    tables["unmerge_adapter"] = race(unmerges, size.rounds)
    swaps = {
        "loralab": Case(partial(ours.swap_adapter, "one"), partial(ours.swap_adapter, "default")),
        "peft": Case(partial(swap, "one"), partial(swap, "default")),
    }
    tables["one merged adapter for another"] = race(swaps, size.rounds)
    return tables


def drifting(size: Size, folder: Path) -> dict[str, float]:
    """Return the share of the base's weights that cycles of merging and unmerging change."""
    base, models = pair(size, folder)
    before = dict(base.named_parameters())
    shares = {}
    for library, model in models.items():
        for _ in range(size.cycles):
            model.merge_adapter()
            model.unmerge_adapter()
        after = {
            name.removeprefix("base_model.model.").replace(".base_layer", ""): parameter
            for name, parameter in model.named_parameters()
            if "lora_" not in name
        }
        changed = sum(int((after[name] != old).sum()) for name, old in before.items())
        shares[library] = changed / sum(old.numel() for old in before.values())
    return shares


def tokens(size: Size, batch: tuple[int, int]) -> Tensor:
    return torch.randint(size.small[0], batch)


@torch.no_grad()
def run(model: nn.Module, ids: Tensor, **more: Any) -> None:
    model(input_ids=ids, **more)


def running(size: Size, folder: Path) -> Tables:
    """Forward passes with adapters that are not merged, against the base alone."""
    base, models = pair(size, folder)
    names = [
        "default",
        *(f"other{number}" for number in range(max(4, *(rows for rows, _ in size.mixed)) - 1)),
    ]
    for model in models.values():
        load(model, folder, names[1:])
    tables = {}
    for active in (1, 2, 4):
        for model in models.values():
            model.base_model.set_adapter(names[:active])
        for batch in size.batches:
            tables[f"forward, {active} active, {batch[0]} x {batch[1]} tokens"] = race(
                {n: Case(partial(run, m, tokens(size, batch))) for n, m in {"base": base, **models}.items()},
                size.rounds,
            )
    for rows, length in size.mixed:
        ids = tokens(size, (rows, length))
        mixed = partial(run, ids=ids, adapter_names=names[:rows])
        cases = {"base": Case(partial(run, base, ids))}
        cases |= {name: Case(partial(mixed, model)) for name, model in models.items()}
        tables[f"forward, an adapter for each row, {rows} x {length} tokens"] = race(cases, size.rounds)
    return tables


def step(model: nn.Module, ids: Tensor) -> None:
    model(input_ids=ids, labels=ids).loss.backward()
    model.zero_grad()


def variants(size: Size, folder: Path) -> Tables:
    """LoRA and DoRA in training, and DoRA in evaluation, where norms need not be computed again."""
    tables = {}
    batch = size.batches[-1]
    ids = tokens(size, batch)
    for kind in ("LoRA", "DoRA"):
        base, models = pair(size, folder, use_dora=kind == "DoRA")
        if kind == "DoRA":
            cases = {n: Case(partial(run, m, ids)) for n, m in {"base": base, **models}.items()}

            def cached(model: nn.Module = models["peft"]) -> None:
                with DoraCaching():
                    run(model, ids)

            cases["peft, DoraCaching"] = Case(cached)
            tables[f"DoRA, evaluation, {batch[0]} x {batch[1]} tokens"] = race(cases, size.rounds)
        for model in models.values():
            model.train()
            model.set_adapter("default")
        steps = {name: Case(partial(step, model, ids)) for name, model in models.items()}
        tables[f"{kind}, training step, {batch[0]} x {batch[1]} tokens"] = race(steps, size.rounds)
    return tables


def main() -> None:
    flags = arguments("Time adapters on a model against PEFT.")
    size = QUICK if flags.quick else Size()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tables = attaching(size)
        for measure in (managing, merging, running, variants):
            tables |= measure(size, folder)
        drift = drifting(size, folder)
    width = 256 if flags.quick else 1024
    algebra = {f"resize rank 64 to 16, {width} x {width}": resizing(width, size.rounds)}
    for spectrum, table in extraction(width, size.rounds).items():
        algebra[f"extract rank 16, {width} x {width}, {spectrum}"] = table
    if not flags.json:
        for title, table in tables.items():
            show(title, table)
        for title, table in algebra.items():
            show(f"{title} (error: over the least possible)", table, "error")
        print(f"\nweights changed by {size.cycles} cycles of merging and unmerging")
        for library, share in drift.items():
            print(f"{library:24} {share:11.4%}")
    values = {"rank": size.rank, "rounds": size.rounds, "cycles": size.cycles}
    report("adapters", {**values, "seconds": tables, "algebra": algebra, "drift": drift}, flags)


if __name__ == "__main__":
    main()
