"""``loralab watch``."""

from loralab.cli.output import Output, Screen


def command(name: str | None = None, /, *, runs: str = "runs", output: Output = Output()) -> None:  # noqa: B008
    """Follow a run that another process trains, from its beginning until it ends.

    Ctrl-C leaves; the run goes on. `loralab stop NAME` stops it.

    Parameters
    ----------
    name
        Name of the run; left out, the one that is running.
    runs
        Folder that holds the runs.
    """
    from loralab.cli.watching import running, watch
    from loralab.training.folder import find_run

    watch(find_run(runs, name) if name else running(runs), Screen(output))
