"""How much there is."""

from collections.abc import Iterator

from loralab.data.checks._given import Given
from loralab.data.findings import Code, Finding

FEW = Code(
    "D161",
    "warning",
    "there are fewer than 20 examples: an adapter learns them by heart and little else",
    "add rows; a few hundred that are alike in form and different in content do much",
)
FEW_HELD_OUT = Code(
    "D162",
    "note",
    "there are fewer than 20 validation examples: their loss says little, and is not the same twice",
    "hold out more of them",
)
CODES = (FEW, FEW_HELD_OUT)

_FEW = 20


def check(given: Given) -> Iterator[Finding]:
    """Count the examples."""
    if len(given.train) < _FEW:
        yield FEW.found(f"{_count(len(given.train))} to train on", len(given.train))
    if given.validation is not None and len(given.validation) < _FEW:
        yield FEW_HELD_OUT.found(f"{_count(len(given.validation))} to validate on", len(given.validation))


def _count(number: int) -> str:
    return f"there {'is 1 example' if number == 1 else f'are only {number} examples'}"
