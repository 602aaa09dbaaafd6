"""Whether the model learns to stop, and where."""

from collections.abc import Iterator

import numpy as np

from loralab.data.checks._given import Given, Table, share
from loralab.data.findings import Code, Finding

NEVER = Code(
    "D121",
    "warning",
    "no example ends with a token that generation stops at: the model will not learn to stop",
    "use a template that ends answers, as chatml or the tokenizer's own; raw text: --add-eos",
)
EARLY = Code(
    "D122",
    "warning",
    "answers hold a stop token before their end, so the model learns to stop there",
    "take the marks of the template out of the texts",
)
CODES = (NEVER, EARLY)


def check(given: Given) -> Iterator[Finding]:
    """Look for the tokens at which generation ends."""
    train = given.train
    stop_T = np.isin(train.ids_T, given.stops) & train.trained_T
    last_N = stop_T[np.maximum(train.ends_N - 1, 0)]
    if not given.stops:
        yield NEVER.found("the tokenizer has no end-of-sequence token, so the model cannot learn to stop")
    elif not last_N.any():
        names = ", ".join(given.tokenizer.convert_ids_to_tokens(given.stops))
        yield NEVER.found(f"no example ends with {names}: the model will not learn to stop")
    if not given.documents:
        early = np.flatnonzero(train.with_token(stop_T & _goes_on(train)))
        if len(early):
            text = f"{share(len(early), len(train))} rows have an answer with a stop token before its end"
            yield EARLY.found(text, len(early), train.sources(early))


def _goes_on(train: Table) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Return for each token whether the one behind it is of the same answer."""
    behind_T = np.append(train.trained_T[1:], False)
    behind_T[train.ends_N - 1] = False
    return behind_T
