"""The command that serves an adapter with vLLM, once its limits are checked."""

import shlex
from pathlib import Path

from loralab.core.adapter import Adapter
from loralab.core.finite import check_finite
from loralab.errors import AdapterError
from loralab.tools.parts import rest_of

__all__ = ["RANKS", "serving_command"]

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes for ``--max-lora-rank``."""


def serving_command(adapter: Adapter, folder: str | Path, base: str, name: str) -> str:
    """Return the shell command that serves `base` with the adapter in `folder` as the model `name`.

    Raises:
        AdapterError: vLLM would refuse the adapter, or serve something else; all reasons are given at once.
            Or it holds numbers that are not finite.
    """
    check_finite(adapter, "serve it")
    config = adapter.config
    modules = adapter.modules()
    faults = []
    highest = max((factors.rank for factors in modules.values()), default=0)
    if highest > RANKS[-1]:
        faults.append(f"rank {highest} is above {RANKS[-1]}; resize it")
    if config.modules_to_save:
        faults.append(f"modules_to_save ({', '.join(config.modules_to_save)}) are not served; merge it")
    if config.bias != "none" or any(key.endswith(".bias") for key in rest_of(adapter)):
        faults.append("trained biases are not served; merge it")
    if any(key.endswith("lora_magnitude_vector") for key in adapter.tensors):
        faults.append("DoRA magnitudes are not served; merge it")
    if any(".lora_embedding_" in key for key in adapter.tensors):
        faults.append("an adapted embedding is not served; merge it")
    scale = config.scaling(config.lora_alpha, config.r)
    others = [path for path, factors in modules.items() if factors.scaling != scale]
    if others:
        faults.append(
            f"{others[0]} is scaled by {modules[others[0]].scaling:g}, the config's r and lora_alpha say "
            f"{scale:g}, and vLLM reads those only; 'loralab resize' makes every scale 1"
        )
    if faults:
        raise AdapterError(f"{folder}: vLLM cannot serve this adapter: {'; '.join(faults)}.")
    allowed = next(rank for rank in RANKS if rank >= highest)
    words = ["vllm", "serve", base, "--enable-lora", "--max-lora-rank", str(allowed)]
    return shlex.join([*words, "--lora-modules", f"{name}={Path(folder).resolve()}"])
