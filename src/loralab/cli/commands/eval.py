"""``loralab eval``."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from loralab.cli.output import Output, Screen
from loralab.errors import ConfigError
from loralab.training.evaluation.settings import EvalSettings


def command(
    *,
    settings: Annotated[EvalSettings, Parameter(name="*")] = EvalSettings(),  # noqa: B008
    adapter: Annotated[list[str] | None, Parameter(negative=())] = None,
    runs: str = "runs",
    table: Path | None = None,
    comment: str = "",
    again: Annotated[bool, Parameter(negative=())] = False,
    show: Annotated[bool, Parameter(negative=())] = False,
    output: Output = Output(),  # noqa: B008
) -> None:
    """Measure loss and perplexity of a base and of adapters beside it, and score generated answers.

    Loss is the mean over the trained tokens (answers only, for formatted data), in nats. Every measurement
    is a row of a table that grows; what is in it already is not measured again.

    Parameters
    ----------
    adapter
        Adapter: a folder, a run's name, or a hub id. Give it several times for several adapters.
    runs
        Folder that holds the runs.
    table
        The table (CSV). Left out: evaluations.csv in the folder of the runs.
    comment
        A note for the rows; one that is there already gets it too.
    again
        Measure also what the table has already.
    show
        Print the table, and measure nothing.
    """
    from loralab.cli.evaluations import show_table
    from loralab.training.evaluation.table import Table

    screen = Screen(output)
    kept = Table(table or Path(runs) / "evaluations.csv")
    if show:
        if settings.model_fields_set or adapter or comment or again:
            raise ConfigError("--show prints the whole table; leave out what says what to measure.")
        show_table(kept, screen)
        return
    settings.check()

    from loralab.cli.evaluating import follow
    from loralab.training.evaluation.lineup import open_lineup
    from loralab.training.evaluation.measure import Book, measure

    lineup = open_lineup(settings, adapter or (), runs)
    follow(measure(lineup, settings, Book(kept, again, comment)), settings.data, kept, screen)
