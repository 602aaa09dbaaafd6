"""Which requests belong together: those of one adapter."""

import json

__all__ = ["adapter_of"]


def adapter_of(body: bytes, base: str) -> str:
    """Return what a request calls its adapter, "" for the base or a body that the replica will refuse."""
    try:
        model = json.loads(body).get("model", "")
    except (ValueError, AttributeError, RecursionError):
        return ""
    if not isinstance(model, str) or model == base:
        return ""
    return model.removeprefix(f"{base}:")
