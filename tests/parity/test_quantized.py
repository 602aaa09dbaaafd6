"""PEFT as the oracle over quantized layers: the same tensors, outputs, gradients, merges and files."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from loralab import LoraConfig, PeftModel, get_peft_model

NEEDS = "needs {}: pip install 'loralab[quant]'"


class Net(nn.Module):
    """Two layers, and what PEFT asks a model to know of its quantization."""

    def __init__(self, make: Callable[[nn.Linear], nn.Module], **marks: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = make(nn.Linear(64, 96)), make(nn.Linear(96, 64))
        for name, mark in marks.items():
            setattr(self, name, mark)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def nf4() -> Net:
    bnb = pytest.importorskip("bitsandbytes", reason=NEEDS.format("bitsandbytes"))

    def make(linear: nn.Linear) -> nn.Module:
        layer = bnb.nn.Linear4bit(linear.in_features, linear.out_features, quant_type="nf4")
        layer.load_state_dict(linear.state_dict())
        return layer.to("cpu")

    return Net(make, is_loaded_in_4bit=True)


def int8() -> Net:
    bnb = pytest.importorskip("bitsandbytes", reason=NEEDS.format("bitsandbytes"))

    def make(linear: nn.Linear) -> nn.Module:
        layer = bnb.nn.Linear8bitLt(linear.in_features, linear.out_features, has_fp16_weights=False)
        layer.load_state_dict(linear.state_dict())
        return layer.to("cpu")

    return Net(make, is_loaded_in_8bit=True)


def torchao_int8() -> Net:
    pytest.importorskip("torchao", reason=NEEDS.format("torchao"))
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    def make(linear: nn.Linear) -> nn.Module:
        net = nn.Sequential(linear.requires_grad_(False))
        quantize_(net, Int8WeightOnlyConfig())
        return net[0]

    config = SimpleNamespace(get_apply_tensor_subclass=Int8WeightOnlyConfig)
    return Net(make, hf_quantizer=SimpleNamespace(quantization_config=config))


BASES = {"nf4": nf4, "int8": int8, "torchao-int8": torchao_int8}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4},
    "rslora": {"r": 8, "lora_alpha": 32, "use_rslora": True},
    "dora": {"r": 4, "use_dora": True},
}
pytestmark = pytest.mark.filterwarnings("ignore:.*may get different generations:UserWarning:peft")


@pytest.fixture(params=BASES.values(), ids=BASES)
def base(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=SETTINGS.values(), ids=SETTINGS)
def chosen(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"target_modules": ["first", "second"]} | request.param


def x() -> Tensor:
    return torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(1))


def pair(base: Callable[[], Net], chosen: dict[str, Any], *, trained: bool = True) -> tuple[Any, PeftModel]:
    """PEFT's model and ours, over the same base from the same seed, with the same values in them."""
    made = []
    for wrap, config in ((peft.get_peft_model, peft.LoraConfig), (get_peft_model, LoraConfig)):
        net = base()
        torch.manual_seed(1)
        model: Any = wrap(net, config(**chosen)).train()
        generator = torch.Generator().manual_seed(2)
        for _, parameter in sorted(trainable(model).items()):
            if trained:
                parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        made.append(model)
    return made[0], made[1]


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def close(first: Tensor, second: Tensor, tolerance: float = 1e-5) -> None:
    assert (first - second).abs().max() <= tolerance * second.abs().max()


def test_the_same_seed_gives_the_same_parameters(base: Any, chosen: dict[str, Any]) -> None:
    theirs, ours = (dict(m.named_parameters()) for m in pair(base, chosen, trained=False))
    assert ours.keys() == theirs.keys()
    for name, parameter in theirs.items():
        assert type(ours[name]) is type(parameter), name
        assert ours[name].requires_grad == parameter.requires_grad, name
        if parameter.requires_grad:
            close(ours[name], parameter, 0 if "magnitude" not in name else 1e-6)


def test_the_layers_go_by_the_same_names(base: Any, chosen: dict[str, Any]) -> None:
    theirs, ours = pair(base, chosen)
    name = repr(theirs.base_model.model.first).partition("(")[0]
    assert repr(ours.base_model.model.first).startswith(name)


def test_the_same_outputs_and_gradients(base: Any, chosen: dict[str, Any]) -> None:
    found = []
    for model in pair(base, chosen):
        inputs = x().requires_grad_()
        output = model(inputs)
        output.square().sum().backward()
        found.append({"output": output, "x": inputs.grad} | {n: p.grad for n, p in trainable(model).items()})
    theirs, ours = found
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        close(ours[name], tensor)


def test_the_same_merged_weights(base: Any, chosen: dict[str, Any]) -> None:
    theirs, ours = pair(base, chosen)
    base_output = base().train()(x())
    theirs.merge_adapter()
    ours.merge_adapter()
    wanted, output = theirs(x()), ours(x())
    assert (wanted - base_output).abs().max() > 0.1 * base_output.abs().max()
    if base is torchao_int8 and "use_dora" in chosen:
        # PEFT merges B A alone and leaves the magnitudes out; the unmerged outputs agree.
        wanted = pair(base, chosen)[0](x())
        assert (theirs(x()) - wanted).norm() > 0.1 * wanted.norm()
    # Sums that differ in the last bit may fall on either side of a step of the grid.
    assert (output - wanted).norm() <= 0.01 * wanted.norm()


def test_files_pass_both_ways(base: Any, chosen: dict[str, Any], tmp_path: Path) -> None:
    theirs, ours = pair(base, chosen)
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    wanted, written = (load_file(tmp_path / who / "adapter_model.safetensors") for who in ("theirs", "ours"))
    assert written.keys() == wanted.keys()
    assert all(written[key].shape == tensor.shape for key, tensor in wanted.items())
    read = PeftModel.from_pretrained(base(), tmp_path / "theirs").train()
    close(read(x()), theirs(x()))
    read_by_them = peft.PeftModel.from_pretrained(base(), tmp_path / "ours").train()
    close(read_by_them(x()), ours(x()))
