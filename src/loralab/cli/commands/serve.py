"""``loralab serve``."""

from loralab.cli.output import Output, Screen
from loralab.cli.serving import Serving


def command(*, asked: Serving, output: Output = Output()) -> None:  # noqa: B008
    """Serve a base and any number of adapters over HTTP, as OpenAI's clients expect it.

    A request's field "model" names the base, an adapter, or a stack such as "one:0.7+other:0.3".

    Prints a line a request, with --json as JSON. Ctrl-C, or SIGTERM, finishes what runs and ends.
    """
    from loralab.cli.serving import serve

    serve(asked, Screen(output))
