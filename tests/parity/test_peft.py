"""PEFT as the oracle: the same seed, tensors, outputs, gradients and files."""

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from loralab import Adapter, LoraConfig, PeftModel, get_peft_model, write_adapter
from loralab.errors import AdapterError

GOLDEN = "peft_ref_stories260K_e2e_r8"


def parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters(remove_duplicate=False))


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def close(first: Tensor, second: Tensor, tolerance: float = 1e-5) -> None:
    assert first.shape == second.shape
    assert (first - second).abs().max() <= tolerance * max(1.0, second.abs().max().item())


def train_into(model: nn.Module) -> None:
    """Give every trainable parameter a value that no initialisation gives, the same for the same names."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, parameter in sorted(trainable(model).items()):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)


def grown(case: Any, settings: dict[str, Any]) -> tuple[Any, PeftModel]:
    theirs, ours = case.theirs(settings).eval(), case.ours(settings).eval()
    train_into(theirs)
    train_into(ours)
    return theirs, ours


def test_the_same_seed_gives_the_same_parameters(case: Any, settings: dict[str, Any]) -> None:
    theirs, ours = case.theirs(settings), case.ours(settings)
    mine, wanted = parameters(ours), parameters(theirs)
    assert mine.keys() == wanted.keys()
    for name, parameter in wanted.items():
        assert torch.equal(mine[name], parameter), name
        assert mine[name].requires_grad == parameter.requires_grad, name
    assert ours.get_nb_trainable_parameters() == theirs.get_nb_trainable_parameters()


def test_the_same_outputs_and_gradients(case: Any, settings: dict[str, Any]) -> None:
    theirs, ours = grown(case, settings)
    output, wanted = case.output(ours), case.output(theirs)
    assert not torch.allclose(case.output(case.base().eval()), wanted)
    close(output, wanted)
    weights = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(4))
    (output * weights).sum().backward()
    (wanted * weights).sum().backward()
    grads, expected = (
        {n: p.grad for n, p in trainable(m).items() if p.grad is not None} for m in (ours, theirs)
    )
    assert grads.keys() == expected.keys()
    # Some are zero but for rounding: a bias of the keys moves all attention scores alike.
    smallest = 0.01 * max(grad.abs().max() for grad in expected.values())
    for name, grad in expected.items():
        assert (grads[name] - grad).abs().max() <= 1e-5 * torch.maximum(grad.abs().max(), smallest), name


def test_the_same_merged_weights(case: Any, settings: dict[str, Any]) -> None:
    theirs, ours = grown(case, settings)
    before = case.output(ours)
    merged, wanted = ours.merge_and_unload(), theirs.merge_and_unload()
    assert merged.state_dict().keys() == wanted.state_dict().keys()
    for name, tensor in wanted.state_dict().items():
        close(merged.state_dict()[name], tensor, 1e-6)
    close(case.output(merged), before)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
def test_we_read_what_peft_writes(case: Any, settings: dict[str, Any], tmp_path: Path) -> None:
    theirs, _ = grown(case, settings)
    case.save_theirs(theirs, tmp_path)
    close(case.output(case.ours_from(tmp_path)), case.output(theirs))


def test_peft_reads_what_we_write(case: Any, settings: dict[str, Any], tmp_path: Path) -> None:
    _, ours = grown(case, settings)
    ours.save_pretrained(tmp_path)
    close(case.output(case.theirs_from(tmp_path)), case.output(ours))


def test_the_files_hold_the_same(case: Any, settings: dict[str, Any], tmp_path: Path) -> None:
    theirs, ours = grown(case, settings)
    case.save_theirs(theirs, tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    wanted, written = (load_file(tmp_path / who / "adapter_model.safetensors") for who in ("theirs", "ours"))
    assert written.keys() == wanted.keys()
    assert all(torch.equal(written[key], tensor) for key, tensor in wanted.items())
    one, two = (
        json.loads((tmp_path / who / "adapter_config.json").read_text()) for who in ("theirs", "ours")
    )
    differing = {key for key in one if one[key] != two[key]}
    assert one.keys() == two.keys()
    if settings.get("task_type") == "SEQ_CLS":
        # PEFT names the heads of all architectures, we those that are there.
        assert set(two["modules_to_save"]) <= set(one["modules_to_save"])
        differing.remove("modules_to_save")
    assert differing <= {"target_modules", "exclude_modules", "auto_mapping"}


@pytest.mark.parametrize("same", [True, False])
def test_a_file_may_repeat_the_weight_of_the_base_and_not_change_it(tmp_path: Path, same: bool) -> None:
    """PEFT writes the embedding itself beside an adapter over it."""

    def base() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(OrderedDict(embed_tokens=nn.Embedding(8, 4)))

    model = get_peft_model(base(), LoraConfig(target_modules=["embed_tokens"]))
    adapter = model.base_model.adapter("default")
    weight = base().embed_tokens.weight if same else torch.ones(8, 4)
    tensors = {**adapter.tensors, "embed_tokens.base_layer.weight": weight}
    write_adapter(Adapter(adapter.config, tensors), tmp_path)
    if same:
        PeftModel.from_pretrained(base(), tmp_path)
    else:
        with pytest.raises(AdapterError, match=r"embed_tokens\.base_layer\.weight"):
            PeftModel.from_pretrained(base(), tmp_path)


def test_a_mixture_of_precisions(tmp_path: Path) -> None:
    """A bf16 base: PEFT and we both keep fp32 factors, and the outputs agree to bf16."""
    base = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4)).bfloat16()
    settings = peft.LoraConfig(target_modules=["0", "2"], init_lora_weights=False)
    theirs = peft.get_peft_model(base, settings).eval()
    theirs.save_pretrained(tmp_path)
    x = torch.randn(5, 16).bfloat16()
    wanted = theirs(x)
    ours = PeftModel.from_pretrained(theirs.unload(), tmp_path)
    assert ours(x).dtype == wanted.dtype
    assert {t.dtype for t in ours.base_model.adapter("default").tensors.values()} == {torch.float32}
    close(ours(x).float(), wanted.float(), 0.02)


@pytest.fixture(scope="module")
def golden(assets: Path) -> dict[str, Any]:
    folder = assets / "adapters" / GOLDEN
    texts = json.loads((folder / "golden.json").read_text())
    texts["text"] = texts.pop("generated")
    return {"folder": folder, **texts, **load_file(folder / "golden.safetensors")}


def stories(folder: Path) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@torch.no_grad()
def test_a_trained_adapter_gives_the_logits_it_gave(golden: dict[str, Any], stories_model_dir: Path) -> None:
    theirs = peft.PeftModel.from_pretrained(stories(stories_model_dir), golden["folder"]).eval()
    ours = PeftModel.from_pretrained(stories(stories_model_dir), golden["folder"])
    logits = ours(input_ids=golden["input_ids"]).logits
    largest = golden["logits"].abs().max()
    assert (logits - theirs(input_ids=golden["input_ids"]).logits).abs().max() <= 1e-5 * largest
    assert (logits - golden["logits"]).abs().max() <= 1e-5 * largest
    assert ours.get_nb_trainable_parameters()[1] - golden["trainable"] == sum(
        parameter.numel() for parameter in stories(stories_model_dir).parameters()
    )


def test_a_trained_adapter_writes_the_text_it_wrote(golden: dict[str, Any], stories_model_dir: Path) -> None:
    ours = PeftModel.from_pretrained(stories(stories_model_dir), golden["folder"])
    for model in (ours, ours.merge_and_unload()):
        length = golden["generated"].shape[1] - golden["input_ids"].shape[1]
        written = model.generate(
            input_ids=golden["input_ids"], max_new_tokens=length, do_sample=False, pad_token_id=0
        )
        assert torch.equal(written, golden["generated"])
    tokenizer = AutoTokenizer.from_pretrained(stories_model_dir)
    text = tokenizer.decode(written[0, golden["input_ids"].shape[1] :], skip_special_tokens=True)
    assert text.strip().startswith(golden["text"].strip())


def test_a_trained_adapter_is_written_as_it_was(
    golden: dict[str, Any], stories_model_dir: Path, tmp_path: Path
) -> None:
    ours = PeftModel.from_pretrained(stories(stories_model_dir), golden["folder"])
    ours.save_pretrained(tmp_path)
    wanted = load_file(golden["folder"] / "adapter_model.safetensors")
    written = load_file(tmp_path / "adapter_model.safetensors")
    assert written.keys() == wanted.keys()
    assert all(torch.equal(written[key], tensor) for key, tensor in wanted.items())
    one, two = (json.loads((f / "adapter_config.json").read_text()) for f in (golden["folder"], tmp_path))
    one["target_modules"].sort()
    assert one == two
