"""``loralab report``."""

from loralab.cli.output import Output, Screen


def command(name: str, /, *, runs: str = "runs", output: Output = Output()) -> None:  # noqa: B008
    """Write what came of a run: report.md in its folder, with curves, losses, samples and what was changed.

    A run writes it when it ends. Of one that is not finished the page says what there is so far.

    Parameters
    ----------
    name
        Name of the run.
    runs
        Folder that holds the runs.
    """
    from loralab.training.folder import find_run
    from loralab.training.report.report import write_report

    screen = Screen(output)
    path = write_report(find_run(runs, name))
    screen.data({"report": str(path)})
    screen.fact("report", str(path))
