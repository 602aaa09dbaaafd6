"""Tokens into text as they come: whole characters only, and nothing of what may become a stop text."""

from collections.abc import Sequence
from typing import Any

__all__ = ["TextStream"]

_TORN = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """The text of one answer while its tokens arrive."""

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self.ended = False
        """Whether a stop text was written; what follows it is not."""
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        self._ids: list[int] = []
        self._start = self._read = 0
        self._held = ""

    def push(self, token: int) -> str:
        """Take one more token, and return the text that is certain now."""
        self._ids.append(token)
        # Some tokens are written otherwise at the beginning, so a few that went before are decoded along.
        before = self._decode(self._start, self._read)
        now = self._decode(self._start, len(self._ids))
        if now.endswith(_TORN) or len(now) <= len(before):
            return self._hold("")
        self._start, self._read = self._read, len(self._ids)
        return self._hold(now[len(before) :])

    def rest(self) -> str:
        """Return what was held back, at the end of the answer."""
        if self.ended:
            return ""
        before = self._decode(self._start, self._read)
        more = self._decode(self._start, len(self._ids))[len(before) :]
        self._start = self._read = len(self._ids)
        text = self._hold(more) + ("" if self.ended else self._held)
        self._held = ""
        return text

    def _decode(self, start: int, end: int) -> str:
        return str(self._tokenizer.decode(self._ids[start:end], skip_special_tokens=True))

    def _hold(self, more: str) -> str:
        """Return what cannot belong to a stop text, and keep the rest."""
        if self.ended:
            return ""
        text = self._held + more
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.ended, self._held = True, ""
            return text[: min(found)]
        kept = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of `text` are the beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
