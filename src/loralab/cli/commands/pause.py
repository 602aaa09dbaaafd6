"""``loralab pause``."""

from loralab.cli.output import Output, Screen


def command(name: str, /, *, runs: str = "runs", output: Output = Output()) -> None:  # noqa: B008
    """Let a running run wait after its step, with all it has kept in memory. `loralab resume NAME` ends that.

    Parameters
    ----------
    name
        Name of the run.
    runs
        Folder that holds the runs.
    """
    from loralab.cli.asking import ask

    ask(name, runs, Screen(output), "will wait after this step; go on with: loralab resume", pause=True)
