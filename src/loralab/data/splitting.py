"""Validation rows are taken from the training data by a hash of what they say.

So a row stays on its side when others are added, taken away or moved, and two that say the same are never on
different sides. Of a text that is one passage, the blocks at its end are taken.
"""

import hashlib
import json

from loralab.data.types import Chat, Text
from loralab.errors import DataError

__all__ = ["content_of", "fraction_of", "held_out_blocks", "number_of"]


def content_of(item: Text | Chat) -> str:
    """Return what a row says, in one string: other columns of it make no difference."""
    if isinstance(item, Text):
        return item.text
    turns: list[object] = [
        [message.role, message.content, *([call.name, dict(call.arguments)] for call in message.tool_calls)]
        for message in item.messages
    ]
    return json.dumps(turns + [dict(tool) for tool in item.tools], sort_keys=True)


def number_of(content: str, purpose: str) -> int:
    """Return 64 bits that are the same for the same content, and unrelated for another purpose."""
    digest = hashlib.blake2b(
        content.encode("utf8", "surrogatepass"), digest_size=8, person=purpose.encode()[:16]
    )
    return int.from_bytes(digest.digest(), "big")


def fraction_of(content: str, purpose: str) -> float:
    """Return `number_of` as a fraction, spread evenly over [0, 1)."""
    return (number_of(content, purpose) >> 11) / 2**53


def held_out_blocks(blocks: int, share: float, source: str) -> int:
    """Return how many blocks at the end of a single passage are for validation: at least one.

    Raises:
        DataError: there are not two blocks, one for each side.
    """
    if blocks < 2:
        raise DataError(
            f"{source}: eval_split has nothing to divide: the text is one passage in one block. Name what "
            "stands between its passages with hard_cut_string, lower cutoff_length, or give eval_data."
        )
    return min(max(round(blocks * share), 1), blocks - 1)
