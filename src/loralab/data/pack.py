"""Examples of many lengths share rows of one width, with little padding."""

from collections.abc import Sequence

from loralab.errors import ConfigError

__all__ = ["pack"]


def pack(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Return rows of indices into `lengths`, each once, no row's lengths summing to over `width`.

    First-fit decreasing: from the longest down (ties in order), each goes into the first row that has room.
    It needs at most 11/9 of the fewest possible rows, plus one (Johnson 1973). A tree over the room that is
    left finds that row in O(log n).

    Raises:
        ConfigError: a length is greater than `width`, or negative.
    """
    for index, length in enumerate(lengths):
        if not 0 <= length <= width:
            raise ConfigError(f"example {index} has {length} tokens; a row holds {width}.")
    rows: list[list[int]] = []
    leaves = 1 << max(len(lengths) - 1, 0).bit_length()
    # room[node] is the greatest room below the node; its children are 2 * node and 2 * node + 1.
    room = [width] * (2 * leaves)
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        node = 1
        while node < leaves:
            node *= 2
            if room[node] < lengths[index]:
                node += 1
        if node - leaves == len(rows):
            rows.append([])
        rows[node - leaves].append(index)
        room[node] -= lengths[index]
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return rows
