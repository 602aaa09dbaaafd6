"""What one contestant needs, measured in the process that it has to itself."""

from dataclasses import replace
from multiprocessing.connection import Connection

from contestants import CONTESTANTS, Setup, Work
from measure import peak_above

from models import TINY

STEPS = 3


def footprint(name: str, setup: Setup, answer: Connection) -> None:
    """Send the peak above the weights, the weights (both MiB) and the last loss, if there is one.

    A step with a tiny model comes first, so that what libraries load counts for nobody.
    """
    CONTESTANTS[name](Work(replace(setup, rows=1, tokens=8, shape=TINY), alone=True))()
    work = Work(setup, alone=True)
    weights = sum(p.numel() * p.element_size() for p in work.original.parameters())
    losses: list[float | None] = []

    def steps() -> None:
        step = CONTESTANTS[name](work)
        losses.extend(step() for _ in range(STEPS))

    peak = peak_above(steps)
    row = {"peak": peak, "weights": weights / 2**20, "error": losses[-1]}
    answer.send({key: value for key, value in row.items() if value is not None})
