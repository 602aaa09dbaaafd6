"""A folder as a registry: each file in it is one entry, found by its name."""

import importlib
import pkgutil
from types import ModuleType

from loralab.errors import ConfigError, did_you_mean


class Registry:
    """The entries of one package: every module in it whose name has no leading underscore.

    To add an entry, add a file. Names are given with "-" or "_".
    """

    def __init__(self, package: str, paths: list[str], noun: str, besides: tuple[str, ...] = ()) -> None:
        """`besides` names modules of the package that are not entries."""
        self.package = package
        self.noun = noun
        found = (info.name for info in pkgutil.iter_modules(paths))
        self.names = sorted(name for name in found if not name.startswith("_") and name not in besides)
        self._imported: dict[str, ModuleType] = {}

    def get(self, name: str) -> ModuleType:
        """Return the entry's module.

        Raises:
            ConfigError: there is no such entry; the nearest names are offered.
        """
        if name in self._imported:
            return self._imported[name]  # layers ask in every forward pass
        key = name.replace("-", "_")
        if key not in self.names:
            raise ConfigError(
                f"unknown {self.noun} {name!r}; known are {', '.join(self.names)}."
                + did_you_mean(key, self.names)
            )
        self._imported[name] = importlib.import_module(f"{self.package}.{key}")
        return self._imported[name]
