"""``loralab stop``."""

from loralab.cli.output import Output, Screen


def command(name: str, /, *, runs: str = "runs", output: Output = Output()) -> None:  # noqa: B008
    """Let a running run finish its step, save and end. `loralab resume NAME` goes on exactly there.

    Parameters
    ----------
    name
        Name of the run.
    runs
        Folder that holds the runs.
    """
    from loralab.cli.asking import ask

    ask(name, runs, Screen(output), "will save and stop after this step", stop=True)
