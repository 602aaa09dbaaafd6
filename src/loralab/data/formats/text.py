"""Documents to continue: ``{"text": "Once upon a time ..."}``."""

from loralab.data.fields import Row, read_text
from loralab.data.types import Text

COLUMNS = ("text",)
OPTIONAL: tuple[str, ...] = ()
TEMPLATE = "plain"


def parse(row: Row, source: str) -> Text:
    """Return the document; `DataError` if it is no string."""
    return Text(read_text(row, "text", source))
