"""The grid: every kind of layer, in every variant, in every precision, against PEFT.

Where PEFT refuses or is wrong, a table says so and why, and the definition in float64 is the judge instead.
"""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from loralab import PeftModel
from loralab.errors import TargetError

from .conftest import LAYERS, Case, Layers, noise
from .test_peft import train_into, trainable

TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6, torch.float16: 8e-3, torch.bfloat16: 6e-2}
"""How far two ways of computing may be apart, as a part of the largest number: some roundings of each."""

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"lora_alpha": 6},
    "dora": {"use_dora": True},
    "lora-bias": {"lora_bias": True},
    "rslora": {"use_rslora": True, "lora_alpha": 3},
}


class Experts(nn.Module):
    """Three experts that see every token, as stacks of [O, I], or [I, O] with `is_transposed`."""

    def __init__(self, is_transposed: bool = False) -> None:
        super().__init__()
        self.is_transposed = is_transposed
        for name, shape in {"up": (3, 8, 6), "down": (3, 6, 8)}.items():
            weight = torch.randn(shape) / 3
            setattr(self, name, nn.Parameter(weight.mT.contiguous() if is_transposed else weight))

    def forward(self, x: Tensor) -> Tensor:
        up, down = (w if self.is_transposed else w.mT for w in (self.up, self.down))
        return (torch.tanh(x @ up) @ down).sum(0)


class Matrix(nn.Module):
    """A parameter that is no layer's own."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(6, 5) / 2)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.table


class Attended(nn.Module):
    """An attention, and a linear layer after it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.MultiheadAttention(6, 3, batch_first=True), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x, x.flip(1), x / 2)[0])


@dataclass(frozen=True)
class Kind:
    """A model of one kind of layer, and what adapts it."""

    case: Case
    targets: dict[str, Any] = field(default_factory=lambda: {"target_modules": ["first", "second"]})

    def cell(self, variant: str, dtype: torch.dtype) -> tuple[Case, dict[str, Any]]:
        inputs = {
            key: value.to(dtype) if value.is_floating_point() else value
            for key, value in self.case.inputs.items()
        }
        settings = {"r": 4, **self.targets, **VARIANTS[variant]}
        return Case(lambda: self.case.build().to(dtype), inputs), settings


def grouped() -> nn.Module:
    return Layers(nn.Conv2d(4, 8, (3, 2), groups=2, padding=1), nn.Conv2d(8, 4, 1, groups=4))


STACKS = {"target_modules": [], "target_parameters": ["first.up", "first.down", "second.table"]}
KINDS = {
    **{name: Kind(LAYERS[name]) for name in ("linear", "gpt2-conv1d", "conv1d", "conv3d")},
    "conv2d": Kind(
        Case(
            lambda: Layers(nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0)), nn.Conv2d(6, 4, 1)),
            {"x": noise(2, 4, 9, 7)},
        )
    ),
    "embedding": Kind(LAYERS["embedding"]),
    "grouped": Kind(Case(grouped, {"x": noise(2, 4, 5, 6)})),
    "multihead": Kind(Case(Attended, {"x": noise(2, 3, 6)})),
    "experts": Kind(Case(lambda: Layers(Experts(), Matrix()), {"x": noise(4, 6)}), STACKS),
    "experts-transposed": Kind(Case(lambda: Layers(Experts(True), Matrix()), {"x": noise(4, 6)}), STACKS),
    "tokens": Kind(
        LAYERS["embedding"],
        {"target_modules": ["second"], "trainable_token_indices": {"first": [9, 2, 30]}},
    ),
}
STACKED = ("experts", "experts-transposed")
BOTH_REFUSE = {
    ("embedding", "lora-bias"): "an embedding has no bias",
    ("multihead", "dora"): "the adapter acts on the weight itself",
    **{
        (kind, v): "the adapter acts on the parameter itself"
        for kind in STACKED
        for v in ("dora", "lora-bias")
    },
}
WE_REFUSE = {
    ("multihead", "lora-bias"): "PEFT gives both projections biases that nothing ever reads",
}
WRONG_IN_PEFT = {
    ("multihead", "plain"): "it adds the output projection's delta twice",
    ("multihead", "rslora"): "it adds the output projection's delta twice",
    ("grouped", "dora"): "it takes the norms of a delta whose groups it has mixed up",
}
NO_MERGE_IN_PEFT = {("grouped", variant): "a merged weight has more input channels" for variant in VARIANTS}

CELLS = [
    (kind, variant)
    for kind in KINDS
    for variant in VARIANTS
    if (kind, variant) not in BOTH_REFUSE | WE_REFUSE
]


def over(name: str, cells: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(name, list(cells), ids=["-".join(cell) for cell in cells])


DTYPES = pytest.mark.parametrize(
    "dtype", list(TOLERANCE), ids=[str(dtype).removeprefix("torch.") for dtype in TOLERANCE]
)


def pair(case: Case, settings: dict[str, Any]) -> tuple[Any, PeftModel]:
    """The same model in both, with the same numbers in everything that is trained."""
    theirs, ours = case.theirs(settings).eval(), case.ours(settings).eval()
    assert trainable(theirs).keys() == trainable(ours).keys()
    train_into(theirs)
    numbers = trainable(theirs)
    with torch.no_grad():
        for name, parameter in trainable(ours).items():
            parameter.copy_(numbers[name])  # over a base of 16 bits PEFT rounds its first values
    return theirs, ours


def near(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    size = max(wanted.abs().max().item(), 0.1)
    assert (found.double() - wanted.double()).abs().max().item() <= TOLERANCE[dtype] * size


@over("cell", [cell for cell in CELLS if cell not in WRONG_IN_PEFT])
@DTYPES
def test_the_same_numbers(cell: tuple[str, str], dtype: torch.dtype) -> None:
    case, settings = KINDS[cell[0]].cell(cell[1], dtype)
    theirs, ours = pair(case, settings)
    output, wanted = case.output(ours), case.output(theirs)
    near(output, wanted, dtype)
    weights = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(4)).to(dtype)
    for out in (output, wanted):
        (out * weights).sum().backward()
    expected = {name: p.grad for name, p in trainable(theirs).items()}
    largest = max(grad.abs().max() for grad in expected.values())
    for name, parameter in trainable(ours).items():
        near(parameter.grad / largest, expected[name] / largest, dtype)

    merged = ours.merge_and_unload()
    near(case.output(merged), output, dtype)
    if cell in NO_MERGE_IN_PEFT:
        with pytest.raises(NotImplementedError, match="groups > 1"):
            theirs.merge_and_unload()
        return
    plain = theirs.merge_and_unload()
    assert merged.state_dict().keys() == plain.state_dict().keys()
    for name, tensor in plain.state_dict().items():
        near(merged.state_dict()[name], tensor, dtype)


@over("cell", CELLS)
@DTYPES
def test_the_same_files(cell: tuple[str, str], dtype: torch.dtype, tmp_path: Path) -> None:
    case, settings = KINDS[cell[0]].cell(cell[1], dtype)
    theirs, ours = pair(case, settings)
    case.save_theirs(theirs, tmp_path / "theirs", save_embedding_layers=False)
    ours.save_pretrained(tmp_path / "ours")
    wanted, written = (load_file(tmp_path / who / "adapter_model.safetensors") for who in ("theirs", "ours"))
    assert written.keys() == wanted.keys()
    assert all(torch.equal(written[key], tensor) for key, tensor in wanted.items())
    near(case.output(case.ours_from(tmp_path / "theirs")), case.output(ours), dtype)
    near(case.output(case.theirs_from(tmp_path / "ours")), case.output(theirs), dtype)


@over("cell", BOTH_REFUSE | WE_REFUSE)
def test_what_is_refused(cell: tuple[str, str]) -> None:
    case, settings = KINDS[cell[0]].cell(cell[1], torch.float32)
    with pytest.raises(TargetError):
        case.ours(settings)
    if cell in BOTH_REFUSE:
        with pytest.raises(ValueError, match=r"not supported|does not (support|work)"):
            case.theirs(settings)
    else:
        theirs = case.theirs(settings)
        case.output(theirs).square().sum().backward()
        unread = [name for name, p in trainable(theirs).items() if p.grad is None]
        places = ("first.base_layer.out_proj", "first")
        assert unread == [f"base_model.model.{place}.lora_B.default.bias" for place in places]


def truth(case: Case, ours: PeftModel) -> nn.Module:
    """The base with the weights that the adapter's tensors stand for, by the definitions alone."""
    made, tensors = case.base(), ours.base_model.adapter("default").tensors
    config = ours.peft_config["default"]
    scaling = config.lora_alpha / (4**0.5 if config.use_rslora else 4)
    with torch.no_grad():
        for path in ("first", "second"):
            module = made.get_submodule(path)
            a, b = (tensors[f"{path}.lora_{side}.weight"].flatten(1) for side in "AB")
            if isinstance(module, nn.Conv2d):
                setattr(
                    made, path, one_group(module, a, b, scaling, tensors[f"{path}.lora_magnitude_vector"])
                )
            elif isinstance(module, nn.MultiheadAttention):
                module.in_proj_weight += scaling * b @ a
                inner = f"{path}.base_layer.out_proj.lora"
                module.out_proj.weight += (
                    scaling * tensors[f"{inner}_B.weight"] @ tensors[f"{inner}_A.weight"]
                )
            else:
                module.weight += scaling * b @ a
    return made


def one_group(conv: nn.Conv2d, a: Tensor, b: Tensor, scaling: float, magnitude: Tensor) -> nn.Conv2d:
    """DoRA over a grouped convolution, as a convolution of one group: zeros stand between the groups."""
    groups, sizes = conv.groups, conv.kernel_size
    made = nn.Conv2d(conv.in_channels, conv.out_channels, sizes, conv.stride, conv.padding).to(conv.weight)
    weight = torch.block_diag(*(block.flatten(1) for block in conv.weight.chunk(groups)))
    weight = weight + scaling * torch.block_diag(*b.chunk(groups)) @ a
    weight = weight / weight.norm(dim=1, keepdim=True) * magnitude.view(-1, 1)
    made.weight.copy_(weight.view_as(made.weight))
    made.bias.copy_(conv.bias)
    return made


@over("cell", WRONG_IN_PEFT)
def test_where_peft_is_wrong(cell: tuple[str, str]) -> None:
    case, settings = KINDS[cell[0]].cell(cell[1], torch.float64)
    theirs, ours = pair(case, settings)
    wanted = case.output(truth(case, ours).eval())
    near(case.output(ours), wanted, torch.float64)
    near(case.output(ours.merge_and_unload()), wanted, torch.float64)
    away = (case.output(theirs) - wanted).abs().max() / wanted.abs().max()
    assert away > 0.01, f"peft {peft.__version__} is right here now: take {cell} out of WRONG_IN_PEFT"


@over("cell", WRONG_IN_PEFT)
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_lower_precisions_follow_the_truth(cell: tuple[str, str], low: torch.dtype) -> None:
    case, settings = KINDS[cell[0]].cell(cell[1], low)
    _, ours = pair(case, settings)
    wanted, _ = KINDS[cell[0]].cell(cell[1], torch.float64)
    exact = wanted.output(truth(wanted, copied(ours)).eval())
    near(case.output(ours).double(), exact, low)
    near(case.output(ours.merge_and_unload()).double(), exact, low)


def copied(model: PeftModel) -> PeftModel:
    return copy.deepcopy(model).double()
