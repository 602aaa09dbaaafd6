"""Let another package answer to the name ``peft``, for programs that import PEFT by that name."""

import importlib
import importlib.metadata
import pkgutil
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from loralab.core.peft_config import FORMAT_VERSION
from loralab.errors import ConfigError

__all__ = ["remove_stand_in", "stand_in"]

NAME = "peft"


class _Metadata(importlib.metadata.Distribution):
    """What ``importlib.metadata`` is told about the stand-in: its name and the version it answers for."""

    def read_text(self, filename: str) -> str | None:
        if filename in ("METADATA", "PKG-INFO"):
            return f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {FORMAT_VERSION}\n"
        return None

    def locate_file(self, path: Any) -> Any:
        return importlib.metadata.PackagePath(path)


class _Finder(importlib.metadata.DistributionFinder):
    """Finds the metadata of the stand-in. Its modules need no finding, they are loaded already."""

    def find_spec(self, *args: Any, **kwargs: Any) -> None:
        return None

    def find_distributions(
        self, context: importlib.metadata.DistributionFinder.Context | None = None
    ) -> Iterator[importlib.metadata.Distribution]:
        if context is not None and context.name == NAME:
            yield _Metadata()


def stand_in(package: str) -> None:
    """Make ``import peft``, with all its submodules and its metadata, mean the package named `package`.

    The installed PEFT, if there is one, is neither needed nor loaded. A second call does nothing.

    Raises:
        ConfigError: PEFT has been imported already, so that some modules hold its classes.
    """
    top = importlib.import_module(package)
    if sys.modules.get(NAME) is top:
        return
    # Before anything is changed, so that a package that cannot be imported is not half in place.
    modules = {
        f"{NAME}{info.name.removeprefix(package)}": importlib.import_module(info.name)
        for info in pkgutil.walk_packages(top.__path__, f"{package}.")
    }
    if NAME in sys.modules or _gave_up("diffusers"):
        raise ConfigError(
            f"other modules have looked for peft already; call {package}.install() before the first import "
            "of peft, transformers, trl and diffusers."
        )
    sys.modules[NAME] = top
    sys.meta_path.insert(0, _Finder())
    sys.modules.update(modules)
    _tell_those_who_asked(top)


def remove_stand_in(package: str) -> None:
    """Undo `stand_in`. Modules that imported ``peft`` meanwhile keep what they have."""
    top = sys.modules.get(package)
    if top is None or sys.modules.get(NAME) is not top:
        return
    for name in [name for name in sys.modules if name == NAME or name.startswith(f"{NAME}.")]:
        del sys.modules[name]
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]


def _gave_up(library: str) -> bool:
    """Return whether a library has found that there is no PEFT, and will not look again."""
    module = sys.modules.get(f"{library}.utils.import_utils")
    return module is not None and not getattr(module, "_peft_available", True)


def _tell_those_who_asked(top: ModuleType) -> None:
    """Give PEFT's classes to transformers' modules that looked for it earlier, and found none."""
    answers: Any = sys.modules.get("transformers.utils.import_utils")
    if answers is not None:
        answers.is_peft_available.cache_clear()
        answers.is_peft_greater_or_equal.cache_clear()
    for name in ("transformers.trainer_utils", "transformers.trainer"):
        module: Any = sys.modules.get(name)
        if module is not None:
            module.PeftModel, module.PeftMixedModel = top.PeftModel, top.PeftMixedModel
