"""Prometheus' texts of many replicas as one, in which each series says whose it is."""

from collections.abc import Iterator, Sequence

from prometheus_client import generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

__all__ = ["joined"]


def joined(texts: Sequence[tuple[str, bytes]]) -> bytes:
    """Return the series of (replica, its text), with the label ``replica``."""
    return generate_latest(_Series(texts))


class _Series(Collector):
    def __init__(self, texts: Sequence[tuple[str, bytes]]) -> None:
        self._texts = texts

    def collect(self) -> Iterator[Metric]:
        """Yield each kind of series once, however many replicas have it."""
        kinds: dict[str, Metric] = {}
        for replica, text in self._texts:
            for family in text_string_to_metric_families(text.decode()):
                kind = kinds.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    kind.samples.append(sample._replace(labels={**sample.labels, "replica": replica}))
        yield from kinds.values()
