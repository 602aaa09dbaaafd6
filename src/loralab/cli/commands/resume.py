"""``loralab resume``."""

from loralab.cli.output import Output, Screen


def command(name: str, /, *, runs: str = "runs", output: Output = Output()) -> None:  # noqa: B008
    """Go on with an interrupted run from its newest checkpoint, exactly as if it had never stopped.

    Parameters
    ----------
    name
        Name of the run.
    runs
        Folder that holds the runs.
    """
    from loralab.cli.training import carry_out
    from loralab.training.run import resume

    carry_out(resume(name, runs), Screen(output))
