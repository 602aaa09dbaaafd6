"""Where the commands that make adapters and models put them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loralab.errors import ConfigError

if TYPE_CHECKING:
    from loralab.core.adapter import Adapter

__all__ = ["check_out", "check_picture", "save_adapter"]


def check_out(out: Path, overwrite: bool) -> None:
    """Refuse a place where something is already, unless it is to be replaced.

    Raises:
        ConfigError: `out` is a file or a folder with something in it.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not overwrite:
        raise ConfigError(f"{out} exists already; choose another --out, or replace it with --overwrite.")


def check_picture(path: Path | None) -> None:
    """Refuse a picture's name that says another format than ours.

    Raises:
        ConfigError: the name does not end in .svg.
    """
    if path is not None and path.suffix != ".svg":
        raise ConfigError(f"--plot {path}: pictures are SVG, so the name must end in .svg.")


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
