"""What a request may call a model: the base, an adapter, or a weighted stack of adapters."""

import math

from loralab.serving.errors import BadRequest

__all__ = ["canonical", "parse"]


def parse(model: str) -> list[tuple[str, float]]:
    """Return the adapters and weights of a stack: "a:0.7+b:0.3", or of a single name, whose weight is 1.

    Raises:
        BadRequest: a weight is no finite number, or a name is missing or there twice.
    """
    found: dict[str, float] = {}
    for part in model.split("+"):
        name, colon, text = part.strip().rpartition(":")
        weight = _number(text) if colon else None
        if weight is None:
            name, weight = part.strip(), 1.0
        if not name or name in found:
            raise BadRequest(f"model {model!r}: expected names with weights, each once, as in 'a:0.7+b:0.3'.")
        if not math.isfinite(weight):
            raise BadRequest(f"model {model!r}: the weight of {name!r} is not finite.")
        found[name] = weight
    return list(found.items())


def canonical(parts: list[tuple[str, float]]) -> str:
    """Return the one way to write a stack."""
    if len(parts) == 1 and parts[0][1] == 1.0:
        return parts[0][0]
    # As exact as the number itself, and without the plus of "1e+16", which would part the stack.
    return "+".join(f"{name}:{repr(weight).removesuffix('.0').replace('e+', 'e')}" for name, weight in parts)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
