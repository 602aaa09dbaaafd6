"""The formats of adapter files beside PEFT's folders: one file each; the folder is the registry.

An entry has ``matches(keys) -> bool``, ``read(tensors, hints) -> Adapter`` and ``write(adapter) -> tensors``.
Paths of modules in an image model begin with the component that they belong to: ``unet.``, ``transformer.``,
``text_encoder.``. What a format, or an `Adapter`, cannot express is refused by name.
"""

from collections.abc import Collection

from loralab.core.registry import Registry
from loralab.errors import AdapterError

__all__ = ["REGISTRY", "detect"]

REGISTRY = Registry(__name__, list(__path__), "adapter format")


def detect(keys: Collection[str], where: str) -> str:
    """Return the name of the format that a file's keys are in.

    Raises:
        AdapterError: no format, or more than one, knows such keys.
    """
    found = [name for name in REGISTRY.names if REGISTRY.get(name).matches(keys)]
    if len(found) == 1:
        return found[0]
    example = sorted(keys)[0] if keys else "none"
    known = ", ".join(REGISTRY.names)
    raise AdapterError(
        f"{where}: keys like {example!r} belong to {' and '.join(found) or 'no format known here'}; "
        f"known are {known}. Name the format if you know it."
    )
