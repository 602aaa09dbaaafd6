"""Where the commands that make adapters and models put them."""

import importlib.util
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from loralab.errors import ConfigError

if TYPE_CHECKING:
    from loralab.core.adapter import Adapter

__all__ = ["check_out", "check_picture", "save_adapter"]


_OURS = (
    *("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "adapter_*.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "vocab.*"),
    *("merges.txt", "README.md", "loralab.json", "export.json", "*.gguf"),
)
"""The names of what these commands write; only folders of such files are ever replaced."""


def check_out(out: Path, overwrite: bool, sources: Sequence[Path] = ()) -> None:
    """Refuse a place where something is already, unless it is an earlier result that is to be replaced.

    `sources` are what the result is made from; they are never replaced.

    Raises:
        ConfigError: `out` is a file, a folder with something in it, or is, holds or lies in a source.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; --out names a folder.")
    place = out.resolve()
    for source in (*sources, Path()):
        kept = source.resolve()
        if source.exists() and (
            place == kept or place in kept.parents or (source != Path() and kept in place.parents)
        ):
            raise ConfigError(
                f"{out} is, holds or lies in {kept}, which is still needed; choose another --out."
            )
    names = sorted(entry.name for entry in out.iterdir()) if out.exists() else []
    if names and not overwrite:
        raise ConfigError(f"{out} exists already; choose another --out, or replace it with --overwrite.")
    strange = [name for name in names if not any(fnmatch(name, pattern) for pattern in _OURS)]
    if strange:
        raise ConfigError(f"{out} holds {strange[0]!r}, which is not ours to delete; choose another --out.")


def check_picture(path: Path | None) -> None:
    """Refuse a picture that could not be drawn, before any work.

    Raises:
        ConfigError: the name says a format that is not drawn here, its folder is missing, or matplotlib is
            not installed.
    """
    if path is None:
        return
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"--plot {path}: the name of a picture must end in .png, .svg or .pdf.")
    if path.is_dir():
        raise ConfigError(f"--plot {path}: a folder; expected the name of a file to write.")
    if not path.parent.is_dir():
        raise ConfigError(f"--plot {path}: there is no folder {path.parent}; make it first.")
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("drawing needs the package 'matplotlib'; install it: pip install 'loralab[plot]'.")


def save_adapter(adapter: "Adapter", out: Path, sources: Sequence[Path] = ()) -> None:
    """Write an adapter folder, with the format and template of its sources where they agree."""
    from loralab.adapters import write_adapter
    from loralab.adapters.habits import Habits, read_habits, write_habits
    from loralab.files import new_folder

    habits = {read_habits(source) for source in sources}
    with new_folder(out) as folder:
        write_adapter(adapter, folder)
        if len(habits) == 1 and habits != {Habits()}:
            write_habits(folder, habits.pop())
