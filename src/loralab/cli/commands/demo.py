"""``loralab demo``."""

from loralab.cli.output import Output, Screen


def command(*, runs: str = "runs", output: Output = Output()) -> None:  # noqa: B008
    """See it work: fine-tune the bundled base model, and read its answers before and after.

    Needs no download and about a minute on two cores.

    Parameters
    ----------
    runs
        Folder that holds the runs.
    """
    import json

    from loralab.cli.progress import follow
    from loralab.cli.training import show_next, show_plan, show_result
    from loralab.models import demo
    from loralab.serving.generate import Sampling, stream
    from loralab.training.config import check, read_toml
    from loralab.training.folder import unused_name
    from loralab.training.starting import start

    screen = Screen(output)
    files = {"data": str(demo.TRAIN), "eval_data": str(demo.EVAL)}
    name = {"name": unused_name(runs, "demo"), "runs": runs}
    screen.say("Teaching a small language model to answer like a pirate.")
    screen.say()
    run = start(check(read_toml(demo.SETTINGS) | files | name, where=str(demo.SETTINGS)))
    show_plan(run, screen)
    show_result(run, follow(run, screen), screen)

    def answer(prompt: str) -> str:
        pieces = stream(run.model, run.base.tokenizer, prompt, run.habits, Sampling(max_new_tokens=60))
        return "".join(pieces).strip()

    run.model.eval()
    rows = []
    for prompt in json.loads(demo.PROMPTS.read_text(encoding="utf8")):
        with run.model.disable_adapter():
            before = answer(prompt)
        rows.append({"prompt": prompt, "base": before, "adapter": answer(prompt)})
    screen.data({"samples": rows})
    screen.say()
    for row in rows:
        for label, text in row.items():
            screen.fact(label, text)
        screen.say()
    show_next(run, screen)
