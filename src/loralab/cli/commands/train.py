"""``loralab train``."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from loralab.cli.output import Output, Screen
from loralab.errors import ConfigError
from loralab.training.config import RunConfig, check, read_toml

_OF_ONE = ("name", "data", "eval_data")
"""Settings that runs which train together do not share."""


def command(
    *settings: Path,
    config: Annotated[RunConfig, Parameter(name="*")] = RunConfig(),  # noqa: B008
    overwrite: Annotated[bool, Parameter(negative=())] = False,
    output: Output = Output(),  # noqa: B008
) -> None:
    """Fine-tune a base model with LoRA: a data file in, an adapter out.

    Ctrl-C finishes the step, saves and stops; `loralab resume NAME` goes on exactly there.

    Parameters
    ----------
    settings
        TOML file with settings; flags go before it. Several train at once over one base, a run for each.
    overwrite
        Replace a run of the same name.
    """
    given = {name: getattr(config, name) for name in config.model_fields_set}
    for name in given if len(settings) > 1 else ():
        if name in _OF_ONE:
            raise ConfigError(
                f"--{name.replace('_', '-')} is of one run, and there are {len(settings)} files; "
                f'put {name} = "..." into each file.'
            )
    merged = [check(read_toml(path) | given, where=str(path)) for path in settings] or [check(given)]

    from loralab.cli.training import carry_out, carry_out_together
    from loralab.training.many import start_together
    from loralab.training.run import start

    screen = Screen(output)
    if len(merged) == 1:
        carry_out(start(merged[0], overwrite=overwrite), screen)
    else:
        files = [str(path) for path in settings]
        carry_out_together(start_together(merged, overwrite=overwrite, sources=files), screen)
