"""What makes a quantized base ready to be trained on, under PEFT's name."""

from typing import Any

import torch
from torch import nn

__all__ = ["checkpoint_activations", "let_gradients_in", "prepare_model_for_kbit_training"]

_KEEP_THEIR_DTYPE = ("gptq", "aqlm", "eetq", "hqq", "torchao")
"""Quantizations, as transformers calls them, whose own tensors are of 16 bits."""


def prepare_model_for_kbit_training(
    model: Any,
    use_gradient_checkpointing: bool = True,
    gradient_checkpointing_kwargs: dict[str, Any] | None = None,
    auto_clear_cache: bool = True,
) -> Any:
    """Return `model`, frozen, changed in place: what is not quantized in fp32, activations checkpointed.

    Norms, embeddings and the output layer go from 16 bits to fp32, unless the quantization is one that
    computes with them as they are. Checkpointing is switched on for quantized models of transformers only;
    for the reentrant kind, which it is unless `gradient_checkpointing_kwargs` says otherwise, the embeddings'
    output requires a gradient. `auto_clear_cache` gives a CUDA device the memory of the 16-bit tensors back.
    """
    options = {"use_reentrant": True} | (gradient_checkpointing_kwargs or {})
    model.requires_grad_(False)
    kind = str(getattr(getattr(model, "quantization_method", None), "value", None))
    if kind not in _KEEP_THEIR_DTYPE:
        _widen(model)
        if auto_clear_cache and torch.cuda.is_available():
            torch.cuda.empty_cache()
    loaded = getattr(model, "is_loaded_in_8bit", False) or getattr(model, "is_loaded_in_4bit", False)
    if use_gradient_checkpointing and (loaded or kind in _KEEP_THEIR_DTYPE):
        if options["use_reentrant"]:
            let_gradients_in(model)
        checkpoint_activations(model, options)
    return model


def checkpoint_activations(model: Any, options: dict[str, Any]) -> None:
    """Let a model of transformers compute its layers again in the backward pass."""
    # transformers has two names for it, and warns of the older one.
    newer = getattr(model, "activation_checkpointing_enable", None)
    (newer or model.gradient_checkpointing_enable)(options)


def _widen(model: nn.Module) -> None:
    for parameter in model.parameters():
        # bitsandbytes may store 4-bit numbers in a tensor that says it is of 16-bit floats.
        if parameter.dtype in (torch.float16, torch.bfloat16) and type(parameter).__name__ != "Params4bit":
            parameter.data = parameter.data.float()


def let_gradients_in(model: Any) -> None:
    """Let the output of a model's embeddings require a gradient, which reentrant checkpointing needs."""
    if hasattr(model, "enable_input_require_grads"):
        model.enable_input_require_grads()
    elif hasattr(model, "get_input_embeddings"):
        model.get_input_embeddings().register_forward_hook(_require_grad)


def _require_grad(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
    output.requires_grad_(True)
