"""What a model's data says about its weights: inputs' covariances, weights' gradients.

The model is run by the caller's function; afterwards it is as it was: no hooks, the same modes, the same
parameters, the same state of torch's random numbers. Shape key: I in, O out, N rows of an input.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from loralab.core.config import LoraConfig
from loralab.core.layers import Activation, LoraLayer, is_linear, wrap
from loralab.core.targets import find_targets, walk
from loralab.errors import ConfigError, TargetError

__all__ = ["covariances", "gradients", "targeted", "undisturbed", "watched"]


def targeted(model: nn.Module, config: LoraConfig, *, linear: bool) -> dict[str, nn.Module]:
    """Return the modules that `config` targets, by path.

    Raises:
        TargetError: nothing is targeted, or with `linear` a module that is no linear layer.
        ConfigError: the model has adapters already.
    """
    if any(isinstance(module, LoraLayer) for module in model.modules()):
        raise ConfigError("the model has adapters already; gather statistics before the first is attached.")
    modules = dict(walk(model))
    chosen = {path: modules[path] for path in find_targets(model, config).paths}
    for path, module in chosen.items():
        if linear and not is_linear(module):
            raise no_linear_layer(path, module, config)
    return chosen


def no_linear_layer(path: str, module: nn.Module, config: LoraConfig) -> TargetError:
    """Return the error that says that an initialisation cannot be used on a module."""
    return TargetError(
        f"init_lora_weights={config.init_lora_weights!r} is for linear layers, and {path!r} is a "
        f"{type(module).__name__}; name it in exclude_modules, or give it an adapter of its own."
    )


@contextlib.contextmanager
def undisturbed(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put a model into training or evaluation mode; afterwards all modes and random numbers are as before."""
    modes = {module: module.training for module in model.modules()}
    gpus = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(gpus)):
        model.train(training)
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode


@contextlib.contextmanager
def watched(modules: Mapping[str, nn.Module], see: Callable[[str, tuple[Any, ...]], None]) -> Iterator[None]:
    """Within the block, call `see` with the path and the inputs of each of `modules` before it runs."""

    def hook_of(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            see(path, args or tuple(kwargs.values()))

        return hook

    with contextlib.ExitStack() as hooks:
        for path, module in modules.items():
            handle = module.register_forward_pre_hook(hook_of(path), with_kwargs=True)
            hooks.callback(handle.remove)
        yield


def covariances(
    modules: Mapping[str, nn.Module], model: nn.Module, run_model: Callable[[], object], dtype: torch.dtype
) -> dict[str, Tensor]:
    """Return the mean of X^T X over the samples that reach each module, [I, I], on its device.

    `model` holds the modules and is run by `run_model`. A sample is one row of a batch, N vectors, divided by
    its largest number as the authors of CorDA do.

    Raises:
        ConfigError: a module was never run, or an input is not finite.
    """
    means: dict[str, Tensor] = {}
    counts = dict.fromkeys(modules, 0)

    def see(path: str, inputs: tuple[Any, ...]) -> None:
        x_BNI = inputs[0].detach().to(torch.float32)
        x_BNI = x_BNI.flatten(1, -2) if x_BNI.dim() > 2 else x_BNI.view(1, -1, x_BNI.shape[-1])
        if not torch.isfinite(x_BNI).all():
            raise ConfigError(f"the input of {path!r} is not finite; look at the data that run_model gives.")
        for x_NI in _scaled(x_BNI):
            counts[path] += 1
            product_II = x_NI.t() @ x_NI
            mean_II = means.get(path)
            if mean_II is not None:
                product_II = mean_II + (product_II - mean_II) / counts[path]
            means[path] = product_II.to(dtype)

    with undisturbed(model, training=False), watched(modules, see), torch.no_grad():
        run_model()
    _check_reached("run_model", [path for path, count in counts.items() if not count], len(modules))
    return means


def _scaled(x_BNI: Tensor) -> Tensor:
    largest_B11 = x_BNI.amax((1, 2), keepdim=True).abs()
    absolute_B11 = x_BNI.abs().amax((1, 2), keepdim=True)
    largest_B11 = torch.where(largest_B11 == 0, absolute_B11, largest_B11)
    return x_BNI / largest_B11.masked_fill(largest_B11 == 0, 1.0)


def gradients(
    modules: Mapping[str, nn.Module], model: nn.Module, train_step: Callable[[], object]
) -> dict[str, Tensor]:
    """Return the mean gradient of each weight over the backward passes of `train_step`, [O, I], in fp32.

    Nothing but these weights gets a gradient, and their own ``.grad`` stays as it is: each is stood in for
    by a parameter that shares its memory, so a weight that is tied to another module's counts here alone.

    Raises:
        ConfigError: a weight got no gradient, is quantized, or the gradient is not finite.
    """
    layers: dict[str, LoraLayer] = {}
    for path, module in modules.items():
        layers[path] = wrap(module, path, Activation())
        if len(layers[path].parts(path)) > 1:
            raise TargetError(f"{path!r} has several weights, which lora_ga cannot tell apart; exclude it.")
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(layers, 0)

    def add(path: str, stand_in: nn.Parameter) -> None:
        gradient = stand_in.grad
        stand_in.grad = None
        if gradient is None:
            return
        gradient = gradient.to_dense() if gradient.is_sparse else gradient
        counts[path] += 1
        if path in sums:
            sums[path] += gradient
        else:
            sums[path] = gradient.to(torch.float32, copy=True)

    with undisturbed(model, training=True), _only_these_train(layers, model, add), torch.enable_grad():
        train_step()
    _check_reached("train_step", [path for path, count in counts.items() if not count], len(layers))
    for path, total in sums.items():
        total /= counts[path]
        if not torch.isfinite(total).all():
            raise ConfigError(f"the gradient of {path!r} is not finite; look at what train_step is given.")
    return {path: layers[path].matrix(total) for path, total in sums.items()}


@contextlib.contextmanager
def _only_these_train(
    layers: Mapping[str, LoraLayer], model: nn.Module, add: Callable[[str, nn.Parameter], None]
) -> Iterator[None]:
    trained = {parameter: parameter.requires_grad for parameter in model.parameters()}
    originals = {path: getattr(layer.holder, layer.weight_name) for path, layer in layers.items()}
    for path, weight in originals.items():
        if not weight.is_floating_point():
            raise ConfigError(f"{path!r} is quantized; lora_ga needs gradients of the full weights.")
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        for path, weight in originals.items():
            stand_in = nn.Parameter(weight.detach())
            stand_in.register_post_accumulate_grad_hook(_adder(add, path))
            setattr(layers[path].holder, layers[path].weight_name, stand_in)
        yield
    finally:
        for path, weight in originals.items():
            setattr(layers[path].holder, layers[path].weight_name, weight)
        for parameter, trains in trained.items():
            parameter.requires_grad_(trains)


def _adder(add: Callable[[str, nn.Parameter], None], path: str) -> Callable[[Tensor], None]:
    def hook(parameter: Tensor) -> None:
        add(path, parameter)  # type: ignore[arg-type]

    return hook


def _check_reached(function: str, missing: list[str], total: int) -> None:
    if missing:
        what = "run" if function == "run_model" else "get a gradient from"
        raise ConfigError(
            f"{function} did not {what} {len(missing)} of {total} targeted modules, the first is "
            f"{missing[0]!r}; let it use the whole model, or exclude them."
        )
