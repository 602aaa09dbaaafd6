"""What "corda" and "lora_ga" must know before an adapter is attached, from data or from a file.

The files are safetensors whatever they are called, and are written whole or not at all.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from loralab.core.calibrate import covariances, gradients, targeted
from loralab.core.config import LoraConfig
from loralab.core.init_config import CordaConfig, LoraGAConfig
from loralab.core.inits import corda
from loralab.core.layers import Activation, wrap
from loralab.core.svd import LowRank, randomized_svd
from loralab.core.targets import walk
from loralab.errors import CheckpointError, ConfigError, TargetError
from loralab.files import write_file

__all__ = ["preprocess_corda", "preprocess_loraga"]

_log = logging.getLogger(__name__)


@torch.no_grad()
def preprocess_corda(
    model: nn.Module,
    lora_config: LoraConfig,
    run_model: Callable[[], object] | None = None,
    hooked_model: nn.Module | None = None,
) -> None:
    """Put into ``lora_config.corda_config`` what ``init_lora_weights="corda"`` needs to know of `model`.

    `run_model` runs the model on some samples; it is not needed if a file named in the config is there.
    `hooked_model` is run in the place of `model`, whose layers it has under the same names. A covariance
    takes [I, I] numbers for each layer; 256 samples of 2,048 tokens are enough for a width of 4,096.

    Raises:
        TargetError: nothing is targeted, or a module that is no linear layer.
        ConfigError: no data, or a file of other layers, ranks or another method.
        CheckpointError: a file is damaged or cannot be written.
    """
    settings = lora_config.corda_config
    settings = settings if isinstance(settings, CordaConfig) else CordaConfig()
    modules = targeted(model, lora_config, linear=True)
    cache = _existing(settings.cache_file)
    if cache:
        read = _read(cache, "corda", settings.corda_method)
        settings.statistics = {
            path: (_entry(read, f"{path}.a", cache), _entry(read, f"{path}.b", cache)) for path in modules
        }
    elif settings.corda_method is None:
        raise ConfigError("corda_method is not set and there is no cache_file; set 'ipm' or 'kpm'.")
    else:
        found = _covariances(model, modules, settings, run_model, hooked_model)
        settings.statistics = _split(modules, found, lora_config, settings)
        settings.covariances = None if settings.prune_temporary_fields else found
    lora_config.corda_config = settings


def _split(
    modules: Mapping[str, nn.Module],
    covariances_II: Mapping[str, Tensor],
    config: LoraConfig,
    settings: CordaConfig,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the factors of every module, and write them to the cache if there is to be one."""
    statistics: dict[str, tuple[Tensor, Tensor]] = {}
    tensors: dict[str, Tensor] = {}
    for path, module in modules.items():
        if settings.verbose:
            _log.info("corda: splitting %s", path)
        layer = wrap(module, path, Activation())
        weight_OI = layer.matrix(layer.dense_weight()).to(torch.float32)
        rank, method = config.rank_of(path), settings.corda_method or ""
        try:
            statistics[path] = corda.decompose(weight_OI, covariances_II[path], rank, method)
        except ConfigError as error:
            raise ConfigError(f"{path!r}: {error}") from None
        tensors |= dict(zip((f"{path}.a", f"{path}.b"), statistics[path], strict=True))
    if settings.cache_file:
        _write(settings.cache_file, tensors, "corda", settings.corda_method)
    return statistics


def _covariances(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    settings: CordaConfig,
    run_model: Callable[[], object] | None,
    hooked_model: nn.Module | None,
) -> dict[str, Tensor]:
    file = _existing(settings.covariance_file)
    if file:
        tensors = _read(file, "corda covariances", None)
        return {path: _entry(tensors, path, file) for path in modules}
    if run_model is None:
        raise ConfigError("preprocess_corda needs run_model, unless cache_file or covariance_file is there.")
    if hooked_model is not None:
        others = dict(walk(hooked_model))
        missing = [path for path in modules if path not in others]
        if missing:
            raise TargetError(
                f"hooked_model has no module {missing[0]!r}; it must have the layers of the model."
            )
        modules = {path: others[path] for path in modules}
    dtype = torch.float16 if settings.use_float16_for_covariance else torch.float32
    found = covariances(modules, hooked_model or model, run_model, dtype)
    if settings.covariance_file:
        _write(settings.covariance_file, found, "corda covariances", None)
    return found


@torch.no_grad()
def preprocess_loraga(
    model: nn.Module,
    lora_config: LoraConfig,
    train_step: Callable[[], object],
    cache_file: str | Path | None = None,
) -> None:
    """Put into ``lora_config.lora_ga_config`` what ``init_lora_weights="lora_ga"`` needs to know of `model`.

    `train_step` runs the model and calls ``backward`` on the loss, as often as it likes; gradients are
    averaged. Of each, the 2 r leading singular directions are kept, in `cache_file` too, which is read if it
    is there.

    Raises:
        TargetError: nothing is targeted.
        ConfigError: a weight gets no gradient or is quantized, or the file is of other layers.
        CheckpointError: the file is damaged or cannot be written.
    """
    settings = lora_config.lora_ga_config
    settings = settings if isinstance(settings, LoraGAConfig) else LoraGAConfig()
    modules = targeted(model, lora_config, linear=False)
    cache = _existing(cache_file)
    if cache:
        read = _read(cache, "lora_ga", None)
        settings.statistics = {path: _triplets(read, path, cache) for path in modules}
    else:
        found = gradients(modules, model, train_step)
        statistics = {}
        for path in list(found):
            # Taken out one by one: together the gradients are as large as the model.
            statistics[path] = randomized_svd(found.pop(path), 2 * lora_config.rank_of(path))
        if cache_file:
            tensors: dict[str, Tensor] = {}
            for path, low in statistics.items():
                tensors |= {f"{path}.u": low.u_OR, f"{path}.s": low.s_R, f"{path}.v": low.v_RI}
            _write(cache_file, tensors, "lora_ga", None)
        settings.statistics = statistics
    lora_config.lora_ga_config = settings


def _existing(file: str | Path | None) -> Path | None:
    path = Path(file) if file else None
    return path if path and path.is_file() and path.stat().st_size else None


def _read(path: Path, kind: str, method: str | None) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a safetensors file ({error}); PEFT's caches are pickles, which are not read. "
            "Delete it or name another file."
        ) from None
    if about.get("kind") != kind:
        raise ConfigError(f"{path}: expected {kind}, the file holds {about.get('kind', 'something else')}.")
    if method and about.get("method") != method:
        raise ConfigError(
            f"{path}: made with corda_method={about.get('method')!r}, the config says {method!r}; delete the "
            "file or change the config."
        )
    return tensors


def _entry(tensors: Mapping[str, Tensor], key: str, path: Path) -> Tensor:
    if key not in tensors:
        raise ConfigError(f"{path}: nothing for {key!r}; it was made with another model or target_modules.")
    return tensors[key]


def _triplets(tensors: Mapping[str, Tensor], path: str, file: Path) -> LowRank:
    u_OR, s_R, v_RI = (_entry(tensors, f"{path}.{name}", file) for name in "usv")
    return LowRank(u_OR, s_R, v_RI)


def _write(path: str | Path, tensors: Mapping[str, Tensor], kind: str, method: str | None) -> None:
    # Copies, because safetensors refuses views and tensors that share memory.
    whole = {key: t.cpu().clone(memory_format=torch.contiguous_format) for key, t in tensors.items()}
    about = {"format": "pt", "kind": kind} | ({"method": method} if method else {})
    write_file(Path(path), lambda temporary: save_file(whole, temporary, metadata=about))
