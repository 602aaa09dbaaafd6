"""Small things that PEFT's users do with adapted models."""

import contextlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import MethodType, TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from loralab.core.layers import LoraLayer
from loralab.core.peft_config import PeftConfig
from loralab.errors import ConfigError, LoralabError

__all__ = [
    "DoraCaching",
    "cast_mixed_precision_params",
    "check_if_peft_model",
    "disable_input_dtype_casting",
    "infer_device",
    "rescale_adapter_scale",
    "shift_tokens_right",
    "update_forward_signature",
    "update_generate_signature",
    "update_signature",
]


def check_if_peft_model(model_name_or_path: str | Path) -> bool:
    """Return whether a folder or a repository on the hub holds an adapter that loralab reads."""
    try:
        PeftConfig.from_pretrained(model_name_or_path)
    except LoralabError:
        return False
    return True


@contextlib.contextmanager
def rescale_adapter_scale(model: nn.Module, multiplier: float) -> Iterator[None]:
    """Within the block every adapter's delta is `multiplier` times what it was; afterwards as before.

    A number between 0 and 1 goes part of the way from the base to the tuned model (Wortsman et al. 2022,
    arXiv 2109.01903). What is merged stays as it is.

    Raises:
        ConfigError: the model has no adapted layers, or `multiplier` is no number.
    """
    if isinstance(multiplier, bool) or not isinstance(multiplier, int | float):
        raise ConfigError(f"multiplier is {multiplier!r}; expected a number.")
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    if not layers:
        raise ConfigError(f"this {type(model).__name__} has no adapted layers to rescale.")
    before = [{name: float(scale) for name, scale in layer.scaling.items()} for layer in layers]
    try:
        _set_scaling(layers, before, multiplier)
        yield
    finally:
        _set_scaling(layers, before, 1.0)


def _set_scaling(layers: list[LoraLayer], scales: list[dict[str, float]], factor: float) -> None:
    for layer, own in zip(layers, scales, strict=True):
        for name in layer.adapters:
            scaling = layer.scaling[name]
            # A tensor is what compiled code reads; it must stay the same one.
            if isinstance(scaling, Tensor):
                scaling.fill_(own[name] * factor)
            else:
                layer.scaling[name] = own[name] * factor


@contextlib.contextmanager
def disable_input_dtype_casting(model: nn.Module, active: bool = True) -> Iterator[None]:
    """Do nothing within the block: layers here cast their factors to the input, never the input."""
    yield


class DoraCaching:
    """A context, or a switch, that PEFT's users set to keep DoRA's norms; here they are always kept.

    They are dropped where they may change: in training, and when a weight or a factor is another tensor.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled

    def __enter__(self) -> "DoraCaching":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End nothing."""


def update_signature(model: Any, method: Literal["forward", "generate", "all"] = "all") -> None:
    """Let `model.forward` and `model.generate` show the signatures of the base model's.

    Raises:
        ConfigError: an unknown method.
    """
    if method not in ("forward", "generate", "all"):
        raise ConfigError(f"method is {method!r}; expected 'forward', 'generate' or 'all'.")
    if method in ("forward", "all"):
        update_forward_signature(model)
    if method in ("generate", "all"):
        update_generate_signature(model)


def update_forward_signature(model: Any) -> None:
    """Do nothing: a `PeftModel`'s forward shows the base's signature by itself."""


def update_generate_signature(model: Any) -> None:
    """Let `model.generate` show the signature and the help of the base model's."""
    base = model.get_base_model()
    if not hasattr(base, "generate"):
        return
    own = type(model).generate

    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        return own(self, *args, **kwargs)

    generate.__doc__ = base.generate.__doc__
    generate.__signature__ = inspect.signature(type(base).generate)  # type: ignore[attr-defined]
    model.generate = MethodType(generate, model)


def cast_mixed_precision_params(model: nn.Module, dtype: torch.dtype) -> None:
    """Give what trains 32 bits, and what is frozen `dtype`, which is float16 or bfloat16."""
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.to(dtype)
        elif parameter.dtype in (torch.float16, torch.bfloat16):
            parameter.data = parameter.to(torch.float32)


def infer_device() -> str:
    """Return the kind of device that tensors should lie on: an accelerator's, or "cpu"."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if found is None else found.type


def shift_tokens_right(input_ids: Tensor, pad_token_id: int, decoder_start_token_id: int) -> Tensor:
    """Return ids [B, T] moved one place to the right, as a decoder reads its labels; -100 becomes padding.

    Raises:
        ConfigError: `pad_token_id` is None.
    """
    if pad_token_id is None:
        raise ConfigError("pad_token_id is None; the model's config must name one.")
    first = torch.full_like(input_ids[:, :1], decoder_start_token_id)
    shifted = torch.cat([first, input_ids[:, :-1]], dim=1)
    return shifted.masked_fill(shifted == -100, pad_token_id)
