"""Put every setting of a run into docs/train.md: python scripts/settings.py.

The page's own text stays; between "<!-- settings: NAME -->" and "<!-- end -->" stands the table of a section.
Names, defaults and words are those of the fields in src/loralab/training/settings/.
"""

import re
from pathlib import Path

from loralab.training.config import RunConfig
from loralab.training.settings import Section

PAGE = Path(__file__).parents[1] / "docs" / "train.md"


def sections() -> dict[str, list[str]]:
    """Return the names of the settings of each section."""
    found = {}
    for owner in RunConfig.__bases__:
        assert issubclass(owner, Section)
        found[owner.__name__.strip("_").removesuffix("Settings").lower()] = list(owner.model_fields)
    return found


def table(names: list[str]) -> str:
    """Return a row for each setting: its name, its default, what it is."""
    rows = ["| setting | default | |", "|---|---|---|"]
    for name in names:
        field = RunConfig.model_fields[name]
        words = " ".join((field.description or "").split()).replace("|", "\\|")
        rows.append(f"| `{name}` | {_shown(field.default)} | {words} |")
    return "\n".join(rows)


def written(page: str) -> str:
    """Return the page with its tables made anew."""
    names = sections()

    def fresh(found: re.Match[str]) -> str:
        return f"<!-- settings: {found[1]} -->\n{table(names[found[1]])}\n<!-- end -->"

    return re.sub(r"<!-- settings: (\w+) -->\n.*?<!-- end -->", fresh, page, flags=re.DOTALL)


def _shown(default: object) -> str:
    if default is None or default == "":
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, int | float) else str(default)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf8")), encoding="utf8")
