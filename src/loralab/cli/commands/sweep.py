"""``loralab sweep``."""

import importlib.util
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from pydantic import Field, create_model

from loralab.cli.output import Output, Screen
from loralab.cli.settings import Origin
from loralab.errors import ConfigError
from loralab.training.config import RunConfig, layered, read_toml
from loralab.training.sweep.opening import How, open_sweep
from loralab.training.sweep.space import read_space

# The flags of `train`, as text: 4,8,16 is no number.
_FLAGS: dict[str, Any] = {
    name: (str | None, Field(default=None, description=field.description))
    for name, field in RunConfig.model_fields.items()
}
_Flags = create_model("_Flags", **_FLAGS)


def command(
    settings: Path | None = None,
    *,
    flags: Annotated[_Flags, Parameter(name="*")] = _Flags(),  # type: ignore[valid-type]  # noqa: B008
    origin: Origin = Origin(),  # noqa: B008
    trials: int | None = None,
    together: int = 1,
    keep_all: Annotated[bool, Parameter(negative=())] = False,
    overwrite: Annotated[bool, Parameter(negative=())] = False,
    output: Output = Output(),  # noqa: B008
) -> None:
    """Train with several values of some settings, on one base, and keep the run of the lowest loss.

    A flag takes one value, as `train` does, or several: 4,8,16, a range 1..64 or 0..0.3:0.1, a range
    1e-4..1e-3:log on a logarithmic scale. The same command, given again, goes on after Ctrl-C or a crash.

    Parameters
    ----------
    settings
        TOML file with the settings that are not swept; flags go before it.
    trials
        How many trials in all. Left out: all combinations of lists, or 20 where there is a range.
    together
        How many are trained at once, where their settings allow: faster, and more memory.
    keep_all
        Keep the checkpoints of all trials, not of the best alone.
    overwrite
        Replace a sweep of the same name.
    """
    given = {name: text for name, text in vars(flags).items() if text is not None}
    if origin.go_on is not None:
        given["from_adapter"] = origin.go_on
    values = read_toml(settings) if settings else {}
    if origin.like is not None:
        from loralab.training.likeness import settings_of

        runs = given.get("runs", values.get("runs", "runs"))
        full = given.get("full", values.get("full")) in (True, "true")
        values = layered(settings_of(origin.like, runs, full=full), values)
    name = given.pop("name", "") or (f"{values['name']}-sweep" if values.get("name") else "")
    space = read_space({**values, "name": name}, given)
    opened = open_sweep(space, name, How(trials, together, keep_all, overwrite))
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError("sweep needs the package 'optuna'; install it: pip install 'loralab[sweep]'.")

    from loralab.cli.sweeping import carry_out
    from loralab.training.sweep.trials import Sweep

    carry_out(Sweep(opened), Screen(output))
