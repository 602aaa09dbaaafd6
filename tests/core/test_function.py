"""The LoRA linear as one function: its gradients, what it keeps for them, and its dropout."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from loralab.core.config import LoraConfig
from loralab.core.dropout import draw_seed, drop
from loralab.core.function import Segment, lora_linears, low_rank
from loralab.core.model import LoraModel

SCALING = 1.7


def tensors(
    dtype: torch.dtype = torch.float64, shape: tuple[int, ...] = (3, 4, 5), bias: bool = True
) -> dict[str, Tensor | None]:
    """x, W, b, A and B for 5 inputs, 6 outputs and rank 2."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": shape, "weight": (6, 5), "bias": (6,), "a": (2, 5), "b": (6, 2)}
    made: dict[str, Tensor | None] = {
        name: torch.randn(size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for name, size in shapes.items()
    }
    return made if bias else made | {"bias": None}


def ours(t: dict[str, Any], dropout: float = 0.0) -> Tensor:
    segment = Segment(((t["a"], t["b"], SCALING),), dropout)
    return lora_linears(t["x"], [(t["weight"], t["bias"])], [segment])[0]


def plain(t: dict[str, Any]) -> Tensor:
    return F.linear(t["x"], t["weight"], t["bias"]) + t["x"] @ t["a"].T @ t["b"].T * SCALING


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("trained", ["x weight bias a b", "a b", "x", "weight", "bias a", "x b"])
def test_gradients_are_those_of_finite_differences(bias: bool, dropout: float, trained: str) -> None:
    made = tensors(shape=(3, 5), bias=bias)
    names = [name for name in trained.split() if made[name] is not None]
    fixed = {name: None if t is None else t.detach() for name, t in made.items()}

    def function(*values: Tensor) -> Tensor:
        torch.manual_seed(3)
        return ours(fixed | dict(zip(names, values, strict=True)), dropout)

    assert torch.autograd.gradcheck(function, [made[name] for name in names])


@pytest.mark.parametrize("shape", [(5,), (3, 5), (3, 4, 5), (2, 1, 4, 5), (0, 5), (3, 0, 5)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_any_shape_computes_the_formula(shape: tuple[int, ...], bias: bool) -> None:
    mine, theirs = tensors(shape=shape, bias=bias), tensors(shape=shape, bias=bias)
    output, expected = ours(mine), plain(theirs)
    torch.testing.assert_close(output, expected)
    grad = torch.randn(output.shape, dtype=output.dtype, generator=torch.Generator().manual_seed(1))
    output.backward(grad)
    expected.backward(grad)
    for name, tensor in mine.items():
        if tensor is not None:
            torch.testing.assert_close(tensor.grad, theirs[name].grad)


def test_strided_inputs_and_gradients_are_taken() -> None:
    mine, theirs = tensors(), tensors()
    x = torch.randn(5, 4, 6, dtype=torch.float64)[:, :, ::2].permute(2, 1, 0)
    assert not x.is_contiguous()
    mine["x"], theirs["x"] = x.clone(memory_format=torch.preserve_format).requires_grad_(), x.clone()
    theirs["x"].requires_grad_()
    grad = torch.randn(6, 4, 3, dtype=torch.float64).permute(2, 1, 0)
    ours(mine).backward(grad)
    plain(theirs).backward(grad)
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor.grad, theirs[name].grad)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_low_rank_is_the_difference_to_the_base(dropout: float) -> None:
    t = tensors()
    torch.manual_seed(1)
    whole = ours(t, dropout)
    torch.manual_seed(1)
    delta = low_rank(t["x"], (t["a"], t["b"], SCALING), dropout)
    torch.testing.assert_close(delta, whole - F.linear(t["x"], t["weight"], t["bias"]))


def saved_bytes(layer: nn.Module, x: Tensor) -> dict[int, Tensor]:
    """The storages that a forward pass keeps for the backward one, by address."""
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x)
    return kept


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_x_is_kept_once_and_neither_a_copy_nor_a_mask(dropout: float) -> None:
    config = LoraConfig(r=4, target_modules=["0"], lora_dropout=dropout)
    model = LoraModel(nn.Sequential(nn.Linear(64, 48)).bfloat16(), config)
    x = torch.randn(8, 32, 64).bfloat16().requires_grad_()
    kept = saved_bytes(model, x)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    assert x.untyped_storage().data_ptr() in kept
    beside = [t for at, t in kept.items() if at not in own and at != x.untyped_storage().data_ptr()]
    assert [(tuple(t.shape), t.dtype) for t in beside] == [((8 * 32, 4), torch.bfloat16)]


def test_layers_that_share_an_input_keep_it_once() -> None:
    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(64, 64) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.q(x) + self.k(x) + self.v(x)

    model = LoraModel(Three().bfloat16(), LoraConfig(r=2, target_modules=["q", "k", "v"], lora_dropout=0.1))
    x = torch.randn(128, 64).bfloat16().requires_grad_()
    large = [t for t in saved_bytes(model, x).values() if t.shape == x.shape]
    assert [t.data_ptr() for t in large] == [x.data_ptr()]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_autocast_computes_in_bf16_and_trains_in_fp32(dropout: float) -> None:
    low, full = tensors(torch.float32), tensors(torch.float32)
    torch.manual_seed(5)
    with torch.autocast("cpu", torch.bfloat16):
        output = ours(low, dropout)
    output.float().square().sum().backward()
    torch.manual_seed(5)
    expected = ours(full, dropout)
    expected.square().sum().backward()
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), expected, atol=0.15, rtol=0.03)
    for name, tensor in low.items():
        assert tensor.grad.dtype == torch.float32
        error = (tensor.grad - full[name].grad).norm() / full[name].grad.norm()
        assert 0 < error < 0.03


def test_under_autocast_the_function_equals_the_layer_by_layer_computation() -> None:
    t = tensors(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(ours(t), plain(t), atol=0.1, rtol=0.02)


@pytest.mark.parametrize("p", [0.05, 0.3, 0.5, 0.9])
def test_dropout_is_bernoulli(p: float) -> None:
    rows, width = 500, 1024
    dropped = drop(torch.ones(rows, width), p, seed=11)
    kept = (dropped != 0).double()
    variance = p * (1 - p)
    assert torch.allclose(dropped[dropped != 0], torch.tensor(1 / (1 - p)), rtol=2e-4)
    assert abs(kept.mean() - (1 - p)) < 5 * (variance / kept.numel()) ** 0.5 + 2**-17
    for sums, count in ((kept.sum(1), width), (kept.sum(0), rows)):
        spread = sums.var() / (count * variance)
        assert abs(spread - 1) < 5 * (2 / len(sums)) ** 0.5
    centred = (kept - kept.mean()).flatten()
    for lag in (1, 2, 3, 4, width):
        correlation = (centred[:-lag] * centred[lag:]).mean() / variance
        assert abs(correlation) < 5 / kept.numel() ** 0.5


def test_the_mask_depends_on_the_seed_and_not_on_the_dtype(dtype: torch.dtype) -> None:
    ones = torch.ones(64, 63, dtype=dtype)
    mask = drop(ones, 0.4, seed=1) != 0
    assert torch.equal(mask, drop(torch.ones(64, 63), 0.4, seed=1) != 0)
    agreeing = (mask == (drop(ones, 0.4, seed=2) != 0)).double().mean()
    assert abs(agreeing - (0.6**2 + 0.4**2)) < 0.05
    assert torch.equal(ones, torch.ones(64, 63, dtype=dtype))


@pytest.mark.parametrize("p", [0.0, 1e-9, 0.999, 1 - 1e-9])
def test_any_probability_below_1_gives_finite_numbers(p: float) -> None:
    assert torch.isfinite(drop(torch.ones(100, 100), p, seed=0)).all()
    assert drop(torch.ones(0, 3), p, seed=0).shape == (0, 3)


def test_seeds_follow_the_global_generator() -> None:
    torch.manual_seed(0)
    first = [draw_seed() for _ in range(3)]
    torch.manual_seed(0)
    assert [draw_seed() for _ in range(3)] == first
    assert len(set(first)) == 3


def test_dropout_is_off_in_evaluation_and_new_in_every_training_step() -> None:
    config = LoraConfig(r=4, target_modules=["0"], lora_dropout=0.5, init_lora_weights=False)
    model = LoraModel(nn.Sequential(nn.Linear(10, 6)), config)
    x = torch.randn(4, 10)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_makes_the_same_mask_again(reentrant: bool) -> None:
    def gradients(checkpointed: bool) -> list[Tensor]:
        t = tensors()
        torch.manual_seed(9)
        output = checkpoint(lambda x: ours(t | {"x": x}, 0.4), t["x"], use_reentrant=reentrant)
        if not checkpointed:
            torch.manual_seed(9)
            output = ours(t, 0.4)
        output.square().sum().backward()
        return [tensor.grad for tensor in t.values()]

    assert all(map(torch.equal, gradients(True), gradients(False)))


@pytest.mark.parametrize("shape", [(5, 10), (2, 3, 10)])
def test_the_output_may_be_changed_in_place(shape: tuple[int, ...]) -> None:
    config = LoraConfig(r=4, target_modules=["0", "2"], init_lora_weights=False)
    found = []
    for inplace in (True, False):
        torch.manual_seed(0)
        model = LoraModel(nn.Sequential(nn.Linear(10, 6), nn.ReLU(inplace), nn.Linear(6, 3)), config)
        out = model(torch.ones(shape).cumsum(0))
        out = out.mul_(2) if inplace else out * 2
        trained = [p for p in model.parameters() if p.requires_grad]
        found.append([out.detach(), *torch.autograd.grad(out.square().sum(), trained)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
