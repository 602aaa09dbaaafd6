"""Files that lie, links that lead away, names that climb: one clear error each, and nothing is read."""

import json
import os
import shutil
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from loralab.errors import AdapterError
from loralab.serving.errors import BadRequest, Forbidden, TooLarge, UnknownModel
from loralab.serving.places import Places
from loralab.serving.reading import Limits, Roots

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
REFUSED = (AdapterError, Forbidden, TooLarge)


@pytest.fixture(scope="module")
def places(llama: Any) -> Places:
    return Places(llama.load().model)


@pytest.fixture
def root(tmp_path: Path, llama: Any) -> Path:
    """A folder with the adapter "good", and beside it, outside, "secret"."""
    shutil.copytree(llama.adapters / "four", tmp_path / "root" / "good")
    shutil.copytree(llama.adapters / "five", tmp_path / "secret")
    return tmp_path / "root"


def config(folder: Path, **changes: Any) -> None:
    """Change some of an adapter's config."""
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change an adapter's tensors."""
    tensors = load_file(folder / WEIGHTS)
    save_file(change(tensors) or tensors, folder / WEIGHTS)


def header(folder: Path, change: Callable[[dict[str, Any]], Any], size: int | None = None) -> None:
    """Change the header of an adapter's file, whatever the data says."""
    data = (folder / WEIGHTS).read_bytes()
    length = int.from_bytes(data[:8], "little")
    values = json.loads(data[8 : 8 + length])
    text = json.dumps(change(values) or values).encode()
    (folder / WEIGHTS).write_bytes(
        struct.pack("<Q", len(text) if size is None else size) + text + data[8 + length :]
    )


def first(values: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = values[min(key for key in values if key != "__metadata__")]
    return entry


# which folders


def test_what_lies_there_is_found_by_name_and_by_path(root: Path) -> None:
    roots = Roots([root])
    shutil.copytree(root / "good", root / "run" / "adapter")
    (root / "empty").mkdir()
    assert roots.names() == {"good": root / "good", "run": root / "run" / "adapter"}
    assert roots.find("run") == root / "run" / "adapter"
    for path in ("good", root / "good", str(root / "good"), root / "x" / ".." / "good"):
        assert roots.admit(path) == root / "good"
    assert roots.admit("run") == root / "run" / "adapter"


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "..",
        ".",
        "",
        "good/../../secret",
        "/etc",
        "go od",
        "-x",
        ".good",
        "a" * 129,
        "g\0d",
        "no",
    ],
)
def test_a_name_that_is_none_finds_nothing(root: Path, name: str) -> None:
    with pytest.raises(UnknownModel):
        Roots([root]).find(name)


@pytest.mark.parametrize("path", ["../secret", "good/../../secret", "/etc", "/", ".", "", "good/..", "x\0y"])
def test_a_path_that_leads_out_is_forbidden(root: Path, path: str) -> None:
    with pytest.raises((Forbidden, BadRequest)):
        Roots([root]).admit(path)
    with pytest.raises(Forbidden):
        Roots([root]).admit(root.parent / "secret")
    with pytest.raises(Forbidden):
        Roots([root]).admit(root)


def test_a_sibling_whose_name_begins_alike_is_outside(root: Path) -> None:
    shutil.copytree(root / "good", root.parent / "rooted")
    with pytest.raises(Forbidden):
        Roots([root]).admit(root.parent / "rooted")


def test_no_adapter_at_a_path_within(root: Path) -> None:
    with pytest.raises(UnknownModel):
        Roots([root]).admit("nothing")


def test_a_folder_that_is_a_link_outside_is_not_read(root: Path) -> None:
    (root / "link").symlink_to(root.parent / "secret")
    roots = Roots([root])
    with pytest.raises(UnknownModel):
        roots.find("link")
    with pytest.raises(Forbidden):
        roots.admit("link")
    with pytest.raises(Forbidden):
        roots.read(root / "link")


def test_a_link_within_is_fine_and_so_is_a_root_that_is_one(root: Path) -> None:
    (root / "other").symlink_to(root / "good")
    (root.parent / "door").symlink_to(root)
    for roots in (Roots([root]), Roots([root.parent / "door"])):
        assert roots.read(roots.find("other")).tensors.keys() == roots.read(roots.find("good")).tensors.keys()


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
def test_a_file_that_is_a_link_outside_is_not_read(root: Path, file: str) -> None:
    (root / "good" / file).unlink()
    (root / "good" / file).symlink_to(root.parent / "secret" / file)
    with pytest.raises(Forbidden, match="leads out"):
        Roots([root]).read(root / "good")


@pytest.mark.parametrize("file", ["loralab.json", "chat_template.jinja"])
def test_habits_behind_a_link_outside_are_not_read(root: Path, file: str) -> None:
    (root.parent / "secret" / file).write_text("{}")
    (root / "good" / file).symlink_to(root.parent / "secret" / file)
    with pytest.raises(Forbidden, match="leads out"):
        Roots([root]).habits(root / "good")


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
def test_a_link_that_changes_after_the_check_gives_nothing_away(
    root: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The link points inside while it is looked at, and outside when it is opened."""
    inside, outside = root / "kept", root.parent / "secret" / file
    shutil.copytree(root / "good", inside)
    link = root / "good" / file
    link.unlink()
    link.symlink_to(inside / file)
    roots, really = Roots([root]), os.open
    assert roots.admit("good") == root / "good"
    assert roots.holds(link)

    def swapped(path: Any, *args: Any, **settings: Any) -> int:
        if Path(path) == link:
            link.unlink()
            link.symlink_to(outside)
            try:
                return really(path, *args, **settings)
            finally:
                link.unlink()
                link.symlink_to(inside / file)
        return really(path, *args, **settings)

    monkeypatch.setattr(os, "open", swapped)
    with pytest.raises(Forbidden, match="leads out"):
        roots.read(root / "good")


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
def test_a_pipe_does_not_hang(root: Path, file: str) -> None:
    (root / "good" / file).unlink()
    os.mkfifo(root / "good" / file)
    found: list[BaseException] = []

    def read() -> None:
        try:
            Roots([root]).read(root / "good")
        except AdapterError as error:
            found.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert "no plain file" in str(found[0])


def test_a_folder_in_place_of_the_file(root: Path) -> None:
    (root / "good" / WEIGHTS).unlink()
    (root / "good" / WEIGHTS).mkdir()
    with pytest.raises(AdapterError):
        Roots([root]).read(root / "good")


def test_only_a_pickle(root: Path) -> None:
    (root / "good" / WEIGHTS).rename(root / "good" / "adapter_model.bin")
    with pytest.raises(AdapterError, match=r"no adapter_model.safetensors"):
        Roots([root]).read(root / "good")


def test_a_pickle_under_the_name_of_a_safetensors_file(root: Path) -> None:
    torch.save({"a": torch.zeros(2)}, root / "good" / WEIGHTS)
    with pytest.raises(REFUSED):
        Roots([root]).read(root / "good")


# what is in them


def test_a_good_one_is_read_as_it_was_written(root: Path, places: Places) -> None:
    adapter = Roots([root]).read(root / "good")
    assert adapter.config.r == 4
    assert len(adapter.tensors) == 28
    stored = load_file(root / "good" / WEIGHTS)
    for key, tensor in stored.items():
        assert torch.equal(adapter.tensors[key.removeprefix("base_model.model.")], tensor)
    assert len(places.fit(adapter, "good").parts) == 14


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 100, "header-1", "header", "header+1", "half", "all-1"])
def test_cut_off_anywhere(root: Path, keep: int | str) -> None:
    path = root / "good" / WEIGHTS
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little") + 8
    lengths = {
        "header-1": size - 1,
        "header": size,
        "header+1": size + 1,
        "half": len(data) // 2,
        "all-1": len(data) - 1,
    }
    path.write_bytes(data[: lengths.get(str(keep), keep)])  # type: ignore[misc]
    with pytest.raises(AdapterError, match=rf"good/{WEIGHTS}: "):
        Roots([root]).read(root / "good")


def test_a_file_that_goes_on_after_its_tensors(root: Path) -> None:
    with (root / "good" / WEIGHTS).open("ab") as file:
        file.write(b"more")
    with pytest.raises(AdapterError):
        Roots([root]).read(root / "good")


LIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a huge shape": lambda values: first(values).update(shape=[1 << 62, 1 << 62]),
    "a shape that is too small": lambda values: first(values).update(shape=[1, 1]),
    "a negative size": lambda values: first(values).update(shape=[-4, -16]),
    "a size that is text": lambda values: first(values).update(shape=["4", 16]),
    "a size that is a fraction": lambda values: first(values).update(shape=[4.0, 16]),
    "a negative offset": lambda values: first(values).update(data_offsets=[-256, 0]),
    "an offset beyond the end": lambda values: first(values).update(data_offsets=[1 << 40, (1 << 40) + 256]),
    "offsets the wrong way round": lambda values: first(values).update(data_offsets=[256, 0]),
    "three offsets": lambda values: first(values).update(data_offsets=[0, 128, 256]),
    "another dtype": lambda values: first(values).update(dtype="F64"),
    "integers": lambda values: first(values).update(dtype="I32"),
    "no dtype of this world": lambda values: first(values).update(dtype="F3"),
    "a dtype that is a list": lambda values: first(values).update(dtype=["F32"]),
    "no offsets": lambda values: first(values).pop("data_offsets") and None,
    "an entry that is none": lambda values: {**values, "x": 7},
    "a list": lambda values: [values],
    "overlapping places": lambda values: (
        [
            entry.update(data_offsets=first(values)["data_offsets"], shape=first(values)["shape"])
            for key, entry in values.items()
            if key != "__metadata__"
        ]
        and None
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies(root: Path, lie: str) -> None:
    header(root / "good", LIES[lie])
    with pytest.raises(AdapterError, match=rf"good/{WEIGHTS}: "):
        Roots([root]).read(root / "good")


@pytest.mark.parametrize("size", [(1 << 64) - 1, 1 << 40, (8 << 20) + 1])
def test_a_header_that_says_it_is_huge(root: Path, size: int) -> None:
    header(root / "good", lambda values: None, size)
    with pytest.raises(TooLarge, match="header"):
        Roots([root]).read(root / "good")


def test_limits_are_for_the_file_its_header_and_the_rank(root: Path) -> None:
    size = (root / "good" / WEIGHTS).stat().st_size
    Roots([root], Limits(file_bytes=size, rank=4, tensors=29)).read(root / "good")
    for limits, what in (
        (Limits(file_bytes=size - 1), rf"has {size:,} bytes; the limit is {size - 1:,}"),
        (Limits(rank=3), "rank is 4, this server takes up to 3"),
        (Limits(header_bytes=16), "header"),
    ):
        with pytest.raises(TooLarge, match=what):
            Roots([root], limits).read(root / "good")
    with pytest.raises(AdapterError, match="27 tensors"):
        Roots([root], Limits(tensors=27)).read(root / "good")
    config(root / "good", rank_pattern={"q_proj": 300})
    with pytest.raises(TooLarge, match="300"):
        Roots([root]).read(root / "good")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "7", "null", '{"r": 4}', "\ufeff{}", "[" * 100_000, '{"r": ' + "9" * 5000 + "}", "\xff"],
    ids=["empty", "open", "list", "number", "null", "no type", "mark", "deep", "digits", "no utf-8"],
)
def test_a_config_that_is_none(root: Path, text: str) -> None:
    (root / "good" / CONFIG).write_bytes(text.encode("latin-1" if text == "\xff" else "utf8"))
    with pytest.raises(AdapterError, match=rf"good/{CONFIG}: "):
        Roots([root]).read(root / "good")


def test_a_config_that_is_too_long(root: Path) -> None:
    (root / "good" / CONFIG).write_text(" " * ((1 << 20) + 1))
    with pytest.raises(TooLarge):
        Roots([root]).read(root / "good")


@pytest.mark.parametrize(
    "changes",
    [
        {"peft_type": "IA3"},
        {"r": 0},
        {"r": -4},
        {"r": "4"},
        {"r": 4.5},
        {"r": None},
        {"lora_alpha": float("inf")},
        {"lora_alpha": float("nan")},
        {"lora_alpha": 1e308},
        {"lora_alpha": "much"},
        {"alpha_pattern": {"q_proj": float("inf")}},
        {"rank_pattern": {"q_proj": "4"}},
        {"rank_pattern": {"q_proj": -1}},
        {"rank_pattern": {"(": 4}},
        {"rank_pattern": [4]},
        {"rank_pattern": {"q_proj": 2}},
        {"r": 8},
        {"target_parameters": ["layers.0.mlp.up_proj.weight"]},
        {"layer_replication": [[0, 2], [0, 2]]},
        {"trainable_token_indices": [3]},
        {"use_dora": True},
        {"lora_bias": True},
        {"runtime_config": None},
        {"runtime_config": {"ephemeral_gpu_offload": True}},
    ],
    ids=str,
)
def test_a_config_that_does_not_go_with_its_file(root: Path, places: Places, changes: dict[str, Any]) -> None:
    config(root / "good", **changes)
    with pytest.raises(REFUSED):
        places.fit(Roots([root]).read(root / "good"), "good")


Q = "base_model.model.model.layers.0.self_attn.q_proj"
TENSORS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "not a number": (lambda t: t[f"{Q}.lora_A.weight"][0].fill_(float("nan")) is None, "not finite"),
    "infinite": (lambda t: t[f"{Q}.lora_B.weight"][:, 1].fill_(float("-inf")) is None, "not finite"),
    "integers": (
        lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(4, 16, dtype=torch.long)}),
        "no tensor of F64",
    ),
    "another base": (lambda t: {k: torch.cat([v, v], -1) for k, v in t.items()}, "needs A|rank"),
    "another width": (
        lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(4, 32)}),
        r"A \[4, 32\] and B \[16, 4\]; this base needs A \[4, 16\] and B \[16, 4\]",
    ),
    "A and B of two ranks": (lambda t: t.update({f"{Q}.lora_B.weight": torch.ones(16, 5)}), "needs A"),
    "a rank that the config does not say": (
        lambda t: t.update(
            {f"{Q}.lora_A.weight": torch.ones(5, 16), f"{Q}.lora_B.weight": torch.ones(16, 5)}
        ),
        "has rank 5, its config says 4",
    ),
    "no matrix": (lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(64)}), "matrix"),
    "a bias of another width": (
        lambda t: t.update({f"{Q}.lora_B.bias": torch.ones(4)}),
        r"lora_B.bias is \[4\]; this base needs \[16\]",
    ),
    "a magnitude of one number": (
        lambda t: t.update({f"{Q}.lora_magnitude_vector": torch.ones(1)}),
        r"lora_magnitude_vector is \[1\]; this base needs \[16\]",
    ),
    "only A": (lambda t: t.pop(f"{Q}.lora_B.weight") is None, "no place"),
    "a key of no module": (
        lambda t: t.update({Q.replace("layers.0", "layers.7") + ".lora_A.weight": torch.ones(4, 16)}),
        "layers.7",
    ),
    "a module that is not there": (
        lambda t: t.update(
            {
                "base_model.model.other.lora_A.weight": torch.ones(4, 16),
                "base_model.model.other.lora_B.weight": torch.ones(16, 4),
            }
        ),
        "other is not in this base",
    ),
    "a norm": (
        lambda t: t.update(
            {
                "base_model.model.model.norm.lora_A.weight": torch.ones(4, 16),
                "base_model.model.model.norm.lora_B.weight": torch.ones(16, 4),
            }
        ),
        "norm is a LlamaRMSNorm, which cannot be served",
    ),
    "something else beside": (lambda t: t.update({"loss": torch.ones(1)}), "loss has no place"),
    "nothing": (lambda t: {"x": torch.ones(1)}, "no module"),
    "a whole module of another shape": (
        lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(7, 16)}),
        r"lm_head.weight is \[7, 16\], this base has \[300, 16\]",
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_do_not_fit(root: Path, places: Places, case: str) -> None:
    change, what = TENSORS[case]
    weights(root / "good", change)
    with pytest.raises(AdapterError, match=what):
        places.fit(Roots([root]).read(root / "good"), "good")


def test_a_magnitude_over_a_row_of_zeros_is_refused(family: Any, llama: Any, tmp_path: Path) -> None:
    """DoRA divides by the norm of W + BA: finite numbers in the file, an infinite one in use."""
    shutil.copytree(llama.adapters / "dora", tmp_path / "zero")
    model = llama.load().model
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight[3] = 0
    weights(tmp_path / "zero", lambda t: t[f"{Q}.lora_B.weight"][3].zero_() is None)
    with pytest.raises(AdapterError, match="finite"):
        Places(model).fit(Roots([tmp_path]).read(tmp_path / "zero"), "zero")


def test_what_overflows_in_the_bases_precision_is_refused(root: Path, llama: Any) -> None:
    """Finite in the file's fp32, infinite in the fp16 that the base computes in."""
    weights(root / "good", lambda t: t[f"{Q}.lora_B.weight"].fill_(1e6) is None)
    adapter = Roots([root]).read(root / "good")
    Places(llama.load("float32").model).fit(adapter, "good")
    with pytest.raises(AdapterError, match="finite"):
        Places(llama.load("float16").model).fit(adapter, "good")


# whatever comes

FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, llama: Any) -> SimpleNamespace:
    """A folder in which the files of one adapter are written over and over."""
    folder = tmp_path_factory.mktemp("fuzz")
    shutil.copytree(llama.adapters / "shift", folder / "one")
    config_text = (folder / "one" / CONFIG).read_bytes()
    data = (folder / "one" / WEIGHTS).read_bytes()
    return SimpleNamespace(folder=folder / "one", roots=Roots([folder]), config=config_text, weights=data)


def attempt(bench: SimpleNamespace, places: Places, config: bytes, weights: bytes) -> None:
    """Read and fit what is in two files: it works, or one of the errors says why not."""
    (bench.folder / CONFIG).write_bytes(config)
    (bench.folder / WEIGHTS).write_bytes(weights)
    try:
        fitted = places.fit(bench.roots.read(bench.folder), "one")
    except REFUSED:
        return
    for part in fitted.parts.values():
        assert torch.isfinite(part.a_RI).all()
        assert torch.isfinite(part.b_OR * part.scaling).all()


@given(data=st.binary(max_size=300))
@FUZZ
def test_any_bytes_as_weights(bench: SimpleNamespace, places: Places, data: bytes) -> None:
    attempt(bench, places, bench.config, data)


@given(text=st.binary(max_size=100), pad=st.integers(0, 40))
@FUZZ
def test_any_header(bench: SimpleNamespace, places: Places, text: bytes, pad: int) -> None:
    attempt(bench, places, bench.config, struct.pack("<Q", len(text)) + text + bytes(pad))


@given(changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6))
@FUZZ
def test_single_bytes_changed(
    bench: SimpleNamespace, places: Places, changes: list[tuple[float, int]]
) -> None:
    """Most of them in the header, where it hurts."""
    data = bytearray(bench.weights)
    size = int.from_bytes(data[:8], "little") + 8
    for at, value in changes:
        data[int(at**2 * (size + 100))] = value
    attempt(bench, places, bench.config, bytes(data))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@given(header=st.dictionaries(st.text(max_size=10), JSON, max_size=4), pad=st.integers(0, 40))
@FUZZ
def test_any_table_as_a_header(
    bench: SimpleNamespace, places: Places, header: dict[str, Any], pad: int
) -> None:
    text = json.dumps(header).encode()
    attempt(bench, places, bench.config, struct.pack("<Q", len(text)) + text + bytes(pad))


@given(
    changes=st.dictionaries(
        st.sampled_from(
            [
                "r",
                "lora_alpha",
                "target_modules",
                "peft_type",
                "bias",
                "use_dora",
                "use_rslora",
                "rank_pattern",
                "alpha_pattern",
                "modules_to_save",
                "layers_to_transform",
                "layers_pattern",
                "fan_in_fan_out",
                "lora_bias",
                "init_lora_weights",
                "target_parameters",
                "trainable_token_indices",
                "ensure_weight_tying",
                "megatron_config",
                "task_type",
                "inference_mode",
                "exclude_modules",
                "layer_replication",
                "runtime_config",
                "eva_config",
                "unknown",
            ]
        ),
        JSON,
        min_size=1,
        max_size=2,
    )
)
@FUZZ
def test_any_config(bench: SimpleNamespace, places: Places, changes: dict[str, Any]) -> None:
    config = {**json.loads(bench.config), **changes}
    attempt(bench, places, json.dumps(config).encode(), bench.weights)


@given(text=st.binary(max_size=60))
@FUZZ
def test_any_bytes_as_a_config(bench: SimpleNamespace, places: Places, text: bytes) -> None:
    attempt(bench, places, text, bench.weights)


@given(path=st.text(max_size=20))
@FUZZ
def test_any_text_as_a_name_or_a_path(bench: SimpleNamespace, path: str) -> None:
    roots = Roots([bench.folder.parent])
    for ask in (roots.find, roots.admit):
        try:
            found = ask(path)
        except (UnknownModel, Forbidden, BadRequest):
            continue
        assert found == bench.folder
