"""LoRA over `torch.nn.Conv1d`, `Conv2d` and `Conv3d`: a convolution to R channels, then a 1 x 1 one to O."""

from typing import final

import torch
from torch import Tensor, nn

from loralab.core.config import LoraConfig
from loralab.core.dropout import draw_seed, drop
from loralab.core.inits import changes_base
from loralab.core.layers.activation import Activation
from loralab.core.layers.base import LoraLayer
from loralab.core.layers.holding import Unset
from loralab.errors import ConfigError, TargetError

LINEAR = False


class _Conv1d(Unset, nn.Conv1d):
    """A factor whose numbers are set right after it is made."""


class _Conv2d(Unset, nn.Conv2d):
    """A factor whose numbers are set right after it is made."""


class _Conv3d(Unset, nn.Conv3d):
    """A factor whose numbers are set right after it is made."""


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: _Conv1d,
    nn.Conv2d: _Conv2d,
    nn.Conv3d: _Conv3d,
}


def matches(module: nn.Module) -> bool:
    """A plain convolution; transposed ones are other classes."""
    return isinstance(module, tuple(_CLASSES)) and "weight" in module._parameters


@final
class Layer(LoraLayer):
    """h = W * x + bias + scaling * B * (A * x), where A has the base's kernel, stride, padding and dilation.

    A is [R, I, k...], B is [O, R / groups, 1...]: with groups, A still sees every input channel, as in
    PEFT's files, so the delta connects channels of different groups. The merged layer is a convolution of one
    group, whose weight is `groups` times as large.
    """

    adapter_layer_names = ("lora_A", "lora_B", "lora_magnitude_vector")

    def __init__(self, base_layer: nn.Module, activation: Activation) -> None:
        super().__init__(base_layer, activation)
        base = self._conv()
        self.lora_A = nn.ModuleDict()
        self.lora_B = nn.ModuleDict()
        self.in_features, self.out_features = base.in_channels, base.out_channels
        self._groups = base.groups
        self.peft_name = next(kind.__name__ for kind in _CLASSES if isinstance(base, kind))

    def _conv(self) -> nn.Conv2d:
        return self.base_layer  # type: ignore[return-value]

    def factor_shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        base = self._conv()
        ones = (1,) * len(base.kernel_size)
        return (rank, base.in_channels, *base.kernel_size), (base.out_channels, rank // self._groups, *ones)

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.flatten(1)

    def unmatrix(self, matrix_OI: Tensor) -> Tensor:
        return matrix_OI.view(self.out_features, self.in_features, *self._conv().kernel_size)

    def dense(self, weight: nn.Parameter) -> Tensor:
        """Return a weight with all its input channels: those of other groups are 0."""
        return _ungrouped(weight.detach(), self.in_features)

    def matrices(self, name: str) -> tuple[Tensor, Tensor]:
        a_RI, b_OR = super().matrices(name)
        return a_RI, _ungrouped(b_OR, a_RI.shape[0])

    def bias_of(self, name: str) -> Tensor | None:
        return self.lora_B[name].bias  # type: ignore[return-value]

    def check_room(self, name: str, rank: int | None) -> None:
        if rank is not None and rank != self.r[name] and self._groups > 1:
            raise ConfigError(
                f"the rank of {self.path!r} cannot be padded: it belongs to groups. Leave target_rank out."
            )
        super().check_room(name, rank)

    def show_merged(self, shown: bool) -> None:
        super().show_merged(shown)
        self._conv().groups = 1 if shown and self._merged else self._groups

    def _check(self, name: str, config: LoraConfig) -> None:
        if self._groups > 1 and config.init_lora_weights == "orthogonal":
            raise TargetError(
                f"init_lora_weights='orthogonal' makes one basis of all ranks, and those of {self.path!r} "
                f"belong to {self._groups} groups; exclude the module."
            )
        if self._groups > 1 and changes_base(config.init_lora_weights):
            raise TargetError(
                f"init_lora_weights={config.init_lora_weights!r} would give a {type(self._conv()).__name__} "
                f"with groups={self._groups} a weight that connects its groups; exclude the module."
            )

    def per_output(self, vector_O: Tensor) -> Tensor:
        return vector_O.view(1, -1, *(1 for _ in self._conv().kernel_size))

    def _create(self, name: str, rank: int, lora_bias: bool, device: str | None) -> None:
        base = self._conv()
        if rank % self._groups:
            raise TargetError(
                f"r={rank} does not divide by the {self._groups} groups of a {type(base).__name__}; "
                "choose another rank, or set one in rank_pattern, or exclude the module."
            )
        kind = next((c if device is None else u) for c, u in _CLASSES.items() if isinstance(base, c))
        self.lora_A[name] = kind(
            base.in_channels,
            rank,
            base.kernel_size,
            stride=base.stride,
            padding=base.padding,
            dilation=base.dilation,
            padding_mode=base.padding_mode,
            bias=False,
            device=device,
        )
        self.lora_B[name] = kind(
            rank, base.out_channels, 1, groups=self._groups, bias=lora_bias, device=device
        )

    def _low(self, name: str, x: Tensor) -> Tensor:
        a, b = self.factors(name)
        conv_a: nn.Conv2d = self.lora_A[name]  # type: ignore[assignment]
        conv_b: nn.Conv2d = self.lora_B[name]  # type: ignore[assignment]
        p = self.dropout_of(name)
        dropped = drop(x, p, draw_seed()) if p > 0 else x
        low = conv_a._conv_forward(dropped, a.to(x.dtype), None)
        bias = None if conv_b.bias is None else conv_b.bias.to(low.dtype)
        output: Tensor = conv_b._conv_forward(low, b.to(low.dtype), bias)
        return output * self.scaling[name]


def _ungrouped(weight: Tensor, columns: int) -> Tensor:
    """Return [O, columns, ...] from [O, columns / groups, ...]: zeros stand between groups."""
    own = weight.shape[1]
    if own == columns:
        return weight
    groups = columns // own
    rows = weight.shape[0] // groups
    blocks = weight.view(groups, rows, own, *weight.shape[2:])
    full = weight.new_zeros(groups, rows, groups, own, *weight.shape[2:])
    index = torch.arange(groups, device=weight.device)
    full[index, :, index] = blocks
    return full.view(weight.shape[0], columns, *weight.shape[2:])
