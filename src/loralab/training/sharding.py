"""The base's weights split over the processes of a run, a part of each layer on each (torch's FSDP2).

A layer's parts come together when it is computed, forward and backward, and part again behind it. The
adapters stay whole everywhere.
"""

from dataclasses import replace

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from loralab.core.inits import changes_base
from loralab.errors import ConfigError
from loralab.models import BaseModel
from loralab.training.config import RunConfig
from loralab.training.devices import Processes
from loralab.training.forecast import stack_of

__all__ = ["check_shard", "split_base"]


def check_shard(config: RunConfig) -> None:
    """Raise ConfigError if `shard` is asked for together with what it does not work with."""
    if not config.shard:
        return
    refused = {
        "full": (config.full, "it trains what would be split"),
        "quantize": (config.quantize, "its packed weights cannot be cut"),
        "compile": (config.compile, "what is compiled expects whole weights"),
        "init": (changes_base(config.init), f"{config.init} gives the base other weights"),
    }
    for name, (given, why) in refused.items():
        if given:
            raise ConfigError(f"shard and {name} do not go together: {why}. Leave one of them out.")


def split_base(base: BaseModel, processes: Processes) -> BaseModel:
    """Return the base with the frozen weights of its layers split; what trains, and all else, stays whole.

    Raises:
        ConfigError: the model has no stack of layers.
    """
    layers = stack_of(base.model)
    if not layers:
        raise ConfigError(f"shard: {type(base.model).__name__} has no stack of layers; leave it out.")
    mesh = init_device_mesh(processes.device.type, (processes.count,))
    trained = {parameter for parameter in base.model.parameters() if parameter.requires_grad}
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=trained)
    base.model.to(processes.device)
    return replace(base, device=torch.device(processes.device))
