"""Optimizers that know A from B: LoRA+, LoRA-FA and Riemannian preconditioning.

Shape key: I in, O out, R rank.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from loralab.core.layers import LoraLayer
from loralab.core.layers.linear import LinearLike
from loralab.errors import ConfigError

__all__ = ["create_lorafa_optimizer", "create_loraplus_optimizer", "create_riemannian_optimizer"]


def create_loraplus_optimizer(
    model: nn.Module,
    optimizer_cls: type[Optimizer],
    *,
    lr: float,
    loraplus_lr_ratio: float,
    loraplus_weight_decay: float = 0.0,
    loraplus_lr_embedding: float = 1e-6,
    **kwargs: Any,
) -> Optimizer:
    """Return an optimizer that trains B, and every vector, at `loraplus_lr_ratio` times the rate of A.

    Hayou et al. 2024, arXiv 2402.12354. Factors of embeddings have a rate of their own; vectors do not decay,
    but for DoRA's magnitudes. Further keywords go to the optimizer.
    """
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    lookups = {id(p) for layer in layers if layer.lookup for p in layer.parameters()}
    fast = {id(layer.factors(name)[1]) for name, layer in _factors(model)}
    fast |= {id(p) for layer in layers for p in layer.lora_magnitude_vector.parameters()}
    groups: dict[str, list[nn.Parameter]] = {"a": [], "embedding": [], "b": [], "vectors": []}
    for parameter in (p for p in model.parameters() if p.requires_grad):
        if id(parameter) in lookups:
            groups["embedding"].append(parameter)
        elif id(parameter) in fast:
            groups["b"].append(parameter)
        else:
            groups["vectors" if parameter.dim() == 1 else "a"].append(parameter)
    rates = {"a": lr, "embedding": loraplus_lr_embedding}
    return optimizer_cls(
        [
            {
                "params": parameters,
                "lr": rates.get(name, lr * loraplus_lr_ratio),
                "weight_decay": 0.0 if name == "vectors" else loraplus_weight_decay,
            }
            for name, parameters in groups.items()
        ],
        **{"lr": lr, **kwargs},
    )


def create_lorafa_optimizer(
    model: nn.Module,
    r: int,
    lora_alpha: float,
    lr: float,
    weight_decay: float = 0.0,
    use_rslora: bool | None = None,
) -> Optimizer:
    """Return an AdamW that leaves every A as it is, and steps B the way the full weight would go.

    Zhang et al. 2023, arXiv 2308.03303, with the gradient of B turned into (A A^T)^-1 of it over the square
    of the scaling, which is what brings B A nearest to the gradient of the weight. The scaling is each
    layer's own; `r`, `lora_alpha` and `use_rslora` are there for PEFT's sake.

    Raises:
        ConfigError: nothing to train.
    """
    for name, layer in _factors(model):
        layer.factors(name)[0].requires_grad_(False)

    def project() -> None:
        for name, layer in _factors(model):
            a_RI, b_OR = layer.factors(name)
            if b_OR.grad is not None:
                scale = float(layer.scaling[name]) ** -2
                b_OR.grad.copy_(b_OR.grad.to(_wide(a_RI)) @ _inverse(a_RI @ a_RI.t(), 1e-8) * scale)

    trained = [p for p in model.parameters() if p.requires_grad]
    return _preconditioned(AdamW(_some(trained), lr=lr, weight_decay=weight_decay, eps=1e-6), project)


def create_riemannian_optimizer(
    model: nn.Module, optimizer_cls: type[Optimizer], *, lr: float, reg: float = 1e-2, **kwargs: Any
) -> Optimizer:
    """Return an optimizer that gets (B^T B + reg)^-1 g_A for A's gradient, and g_B (A A^T + reg)^-1 for B's.

    Zhang and Pilanci 2024, arXiv 2402.02347, equation 4: it makes the step of B A depend less on how its size
    is shared between the two. Further keywords go to the optimizer.

    Raises:
        ConfigError: no linear layer has factors to train.
    """
    pairs = [
        layer.factors(name)
        for name, layer in _factors(model)
        if all(factor.requires_grad for factor in layer.factors(name))
    ]
    if not pairs:
        raise ConfigError(
            "no linear layer has factors A and B that both train; there is nothing to precondition."
        )

    def precondition() -> None:
        for a_RI, b_OR in pairs:
            wide = _wide(a_RI)
            if a_RI.grad is not None:
                a_RI.grad.copy_(_inverse(b_OR.t() @ b_OR, reg) @ a_RI.grad.to(wide))
            if b_OR.grad is not None:
                b_OR.grad.copy_(b_OR.grad.to(wide) @ _inverse(a_RI @ a_RI.t(), reg))

    trained = [p for p in model.parameters() if p.requires_grad]
    return _preconditioned(optimizer_cls(trained, **{"lr": lr, **kwargs}), precondition)


def _factors(model: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """Yield (adapter, layer) for every linear layer."""
    for module in model.modules():
        if isinstance(module, LinearLike):
            for name in module.adapters:
                yield name, module


def _preconditioned(optimizer: Optimizer, change: Callable[[], None]) -> Optimizer:
    """Return `optimizer`, which calls `change` before each of its steps."""

    @torch.no_grad()
    def before(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        # The optimizer itself is the first of the arguments.
        if any(given is not None for given in (*args[1:], kwargs.get("closure"))):
            raise ConfigError("a closure computes new gradients inside the step; call step() without one.")
        change()

    optimizer.register_step_pre_hook(before)
    return optimizer


def _some(parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    if not parameters:
        raise ConfigError("no parameter requires a gradient; there is nothing to train.")
    return parameters


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _inverse(gram_RR: Tensor, damping: float) -> Tensor:
    gram_RR = gram_RR.to(_wide(gram_RR))
    inverse_RR: Tensor = torch.linalg.pinv(gram_RR + damping * torch.eye(len(gram_RR)).to(gram_RR))
    return inverse_RR
