"""``loralab train``."""

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
    overwrite: Annotated[bool, Parameter(negative=())] = False,
    output: Output = Output(),  # noqa: B008
) -> None:
    """Fine-tune a base model with LoRA: a data file in, an adapter out.

    Ctrl-C finishes the step, saves and stops; `loralab resume NAME` goes on exactly there.

    Parameters
    ----------
    settings
        TOML file with settings; flags go before it. Several train at once over one base, a run for each.
    fit
        Choose micro-batch, recomputed layers and quantization so that the run fits the free memory.
    overwrite
        Replace a run of the same name.
    """
    configs = gather(settings, config, origin)
    if fit and len(configs) > 1:
        raise ConfigError("--fit is for a run alone; give each file its own micro_batch_size.")

    from loralab.cli.training import carry_out, carry_out_together
    from loralab.training.many import start_together
    from loralab.training.starting import start

    screen = Screen(output)
    if len(configs) == 1:
        carry_out(start(configs[0], overwrite=overwrite, fitted=fit), screen)
    else:
        files = [str(path) for path in settings]
        carry_out_together(start_together(configs, overwrite=overwrite, sources=files), screen)
