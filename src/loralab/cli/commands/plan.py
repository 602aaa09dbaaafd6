"""``loralab plan``."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from loralab.cli.output import Output, Screen
from loralab.cli.settings import Origin, gather
from loralab.errors import ConfigError
from loralab.training.config import RunConfig


def command(
    *settings: Path,
    config: Annotated[RunConfig, Parameter(name="*")] = RunConfig(),  # noqa: B008
    origin: Origin = Origin(),  # noqa: B008
    fit: Annotated[bool, Parameter(negative=())] = False,
    output: Output = Output(),  # noqa: B008
) -> None:
    """Say what a run would do and take: steps, tokens, parameters, memory, time, disk. Nothing is written.

    Takes what `loralab train` takes. Two real steps are made to measure time and memory, and thrown away.

    Parameters
    ----------
    settings
        TOML file with settings; flags go before it.
    fit
        Choose micro-batch, recomputed layers and quantization so that the run fits the free memory.
    """
    configs = gather(settings, config, origin)
    if len(configs) > 1:
        raise ConfigError("plan takes one file at a time.")

    from loralab.cli.planning import show_whole_plan
    from loralab.training.starting import ready

    show_whole_plan(ready(configs[0], overwrite=True, fitted=fit), Screen(output))
