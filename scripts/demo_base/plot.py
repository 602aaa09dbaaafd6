"""What a plot is: lines with choices, filled from draws.

A line that begins with "?" may be left out. `draws` maps slot names, joined by commas, to options
between ";" whose parts are joined by "/", so that things which belong together are drawn together.
"""

from typing import NamedTuple


class Plot(NamedTuple):
    """One kind of story."""

    who: str
    """Who it can be about: some of "child pair animal"."""
    draws: dict[str, str]
    lines: tuple[str, ...]


PLACE = "park;beach;forest;lake;garden;playground;river;village square;hill;farm;meadow;market"
COLOUR = "red;blue;green;yellow;white;black;orange;purple;brown"
