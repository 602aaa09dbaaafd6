"""LoRA over `torch.nn.Conv1d`, `Conv2d` and `Conv3d`: a convolution to R channels, then a 1 x 1 one to O."""

from typing import final

from torch import Tensor, nn

from loralab.core.dropout import draw_seed, drop
from loralab.core.layers.base import Activation, LoraLayer
from loralab.errors import AdapterError, TargetError

LINEAR = False
_CLASSES = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def matches(module: nn.Module) -> bool:
    """A plain convolution; transposed ones are other classes."""
    return isinstance(module, _CLASSES)


@final
class Layer(LoraLayer):
    """h = W * x + bias + scaling * B * (A * x), where A has the base's kernel, stride, padding and dilation.

    A is [R, I, k...], B is [O, R / groups, 1...]: with groups, A still sees every input channel, as in
    PEFT's files, so the delta is no grouped convolution and cannot be merged.
    """

    def __init__(self, base_layer: nn.Module, activation: Activation) -> None:
        super().__init__(base_layer, activation)
        base = self._conv()
        self.lora_A = nn.ModuleDict()
        self.lora_B = nn.ModuleDict()
        self.in_features, self.out_features = base.in_channels, base.out_channels

    def _conv(self) -> nn.Conv2d:
        return self.base_layer  # type: ignore[return-value]

    def factor_shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        base = self._conv()
        ones = (1,) * len(base.kernel_size)
        return (rank, base.in_channels, *base.kernel_size), (base.out_channels, rank // base.groups, *ones)

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.flatten(1)

    def unmatrix(self, matrix_OI: Tensor) -> Tensor:
        return matrix_OI.view(self.weight.shape)

    def per_output(self, vector_O: Tensor) -> Tensor:
        return vector_O.view(1, -1, *(1 for _ in self._conv().kernel_size))

    def _create(self, name: str, rank: int, lora_bias: bool, device: str | None) -> None:
        base = self._conv()
        if rank % base.groups:
            raise TargetError(
                f"r={rank} does not divide by the {base.groups} groups of a {type(base).__name__}; "
                "choose another rank, or set one in rank_pattern, or exclude the module."
            )
        kind = next(c for c in _CLASSES if isinstance(base, c))
        self.lora_A[name] = kind(
            base.in_channels,
            rank,
            base.kernel_size,  # type: ignore[arg-type]
            stride=base.stride,  # type: ignore[arg-type]
            padding=base.padding,  # type: ignore[arg-type]
            dilation=base.dilation,  # type: ignore[arg-type]
            padding_mode=base.padding_mode,
            bias=False,
            device=device,
        )
        self.lora_B[name] = kind(
            rank, base.out_channels, 1, groups=base.groups, bias=lora_bias, device=device
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

    def delta(self, name: str) -> Tensor:
        base = self._conv()
        if base.groups > 1:
            raise AdapterError(
                f"a {type(base).__name__} with groups={base.groups} cannot be merged: the adapter connects "
                "channels of different groups. Keep it unmerged, or exclude it."
            )
        return super().delta(name)
