"""``loralab resume``."""

from loralab.cli.output import Output, Screen


def command(name: str, /, *, runs: str = "runs", output: Output = Output()) -> None:  # noqa: B008
    """Go on with an interrupted run from its newest checkpoint, exactly as if it had never stopped.

    A run that is paused goes on where it is, in its own process.

    Parameters
    ----------
    name
        Name of the run.
    runs
        Folder that holds the runs.
    """
    from loralab.training.control import Control
    from loralab.training.folder import find_run

    folder, screen = find_run(runs, name), Screen(output)
    # It says "paused" only after its step, so what was asked of it counts.
    if folder.state().alive and Control(folder.path).read().pause:
        from loralab.cli.asking import ask

        ask(name, runs, screen, "goes on", pause=False)
        return

    from loralab.cli.training import carry_out
    from loralab.training.starting import resume

    carry_out(resume(name, runs), screen)
