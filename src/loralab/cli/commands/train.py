"""``loralab train``."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from loralab.cli.output import Output, Screen
from loralab.training.config import RunConfig, check, read_toml


def command(
    settings: Path | None = None,
    /,
    *,
    config: Annotated[RunConfig, Parameter(name="*")] = RunConfig(),  # noqa: B008
    overwrite: Annotated[bool, Parameter(negative=())] = False,
    output: Output = Output(),  # noqa: B008
) -> None:
    """Fine-tune a base model with LoRA: a data file in, an adapter out.

    Ctrl-C finishes the step, saves and stops; `loralab resume NAME` goes on exactly there.

    Parameters
    ----------
    settings
        TOML file with settings; flags go before it.
    overwrite
        Replace a run of the same name.
    """
    given = {name: getattr(config, name) for name in config.model_fields_set}
    values = read_toml(settings) if settings else {}
    merged = check(values | given, where=str(settings) if settings else "")

    from loralab.cli.training import carry_out
    from loralab.training.run import start

    screen = Screen(output)
    carry_out(start(merged, overwrite=overwrite), screen)
