"""What `--effort` chooses where a setting is left out."""

from collections.abc import Mapping
from typing import Any

__all__ = ["EFFORTS", "filled_in"]

EFFORTS: Mapping[str, Mapping[str, Any]] = {
    "quick": {"epochs": 1.0, "r": 8},
    "balanced": {},
    "thorough": {"epochs": 5.0, "r": 32, "target_modules": "all-linear, embeddings"},
}
"""docs/quality.md says what each of them reaches."""

ADAPTERS_OWN = (
    "r",
    "lora_alpha",
    "target_modules",
    "last_layers",
    "modules_to_save",
    "use_rslora",
    "use_dora",
    "init",
)
"""Settings that an adapter has from its birth, and that full fine-tuning has no use for."""


def filled_in(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with what the effort, and one setting for another, chooses."""
    chosen = dict(EFFORTS.get(str(values.get("effort", "balanced")), {}))
    if values.get("full") or values.get("from_adapter"):
        chosen = {name: value for name, value in chosen.items() if name not in ADAPTERS_OWN}
    if values.get("optimizer") == "schedule-free":
        chosen["lr_scheduler"] = "constant_with_warmup"
    if values.get("max_steps") is not None:
        chosen.pop("epochs", None)
    return chosen | dict(values)
