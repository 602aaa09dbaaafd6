"""What Prometheus reads: requests, times, tokens, the cache of adapters, switches between them."""

import time
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from loralab.serving.engine import Engine
from loralab.serving.http.log import Record
from loralab.serving.names import parse
from loralab.serving.requests import Answer

__all__ = ["LABELS", "Metrics"]

LABELS = 200
"""So many adapters have series of their own; those that come later share the label "other"."""

_TIMES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SHORT = (1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.05, 0.25, 1)


class Metrics:
    """The series of one server, in a registry of its own. Is also what the engine tells its doings to."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._labels: dict[str, str] = {}
        by, registry = ["adapter"], self.registry
        self.requests = Counter(
            "loralab_requests", "Requests for text.", ["adapter", "status"], registry=registry
        )
        self.tokens = Counter("loralab_tokens", "Tokens by kind.", ["adapter", "kind"], registry=registry)
        self.first = Histogram(
            "loralab_time_to_first_token_seconds", "From arrival.", by, buckets=_TIMES, registry=registry
        )
        self.each = Histogram(
            "loralab_time_per_output_token_seconds",
            "Of the tokens after the first.",
            by,
            buckets=_TIMES,
            registry=registry,
        )
        self.queue = Histogram("loralab_queue_seconds", "Waited.", by, buckets=_TIMES, registry=registry)
        self.loads = Histogram(
            "loralab_adapter_load_seconds", "An adapter read from disk.", buckets=_TIMES, registry=registry
        )
        self.switches = Counter("loralab_switches", "Changes of adapter.", ["mode"], registry=registry)
        self.switch_seconds = Histogram(
            "loralab_switch_seconds", "One change.", ["mode"], buckets=_SHORT, registry=registry
        )

    def watch(self, engine: Engine) -> None:
        """Read an engine whenever the metrics are read."""
        self.registry.register(_OfEngine(engine))

    def text(self) -> bytes:
        """Return all series in Prometheus' text format."""
        return generate_latest(self.registry)

    def add(self, record: Record) -> None:
        """Count a request for text that has ended."""
        if not record.model:
            return
        adapter = self.label(record.adapter) if record.known else "unknown"
        self.requests.labels(adapter, str(record.status)).inc()
        if record.first_token_seconds is None:
            return
        self.tokens.labels(adapter, "prompt").inc(record.prompt_tokens)
        self.tokens.labels(adapter, "completion").inc(record.completion_tokens)
        self.first.labels(adapter).observe(record.first_token_seconds)
        if record.queue_seconds is not None:
            self.queue.labels(adapter).observe(record.queue_seconds)
        if record.completion_tokens > 1:
            rest = record.total_seconds - record.first_token_seconds
            self.each.labels(adapter).observe(rest / (record.completion_tokens - 1))

    def label(self, adapter: str) -> str:
        """Return an adapter's label: its name, "base", or "other" when there are many already."""
        if not adapter:
            return "base"
        if adapter not in self._labels and len(self._labels) < LABELS:
            self._labels[adapter] = adapter
        return self._labels.get(adapter, "other")

    def finished(self, answer: Answer) -> None:
        """An answer has ended; its request is counted when it has left as well."""

    def loaded(self, name: str, nbytes: int, seconds: float) -> None:
        """An adapter was read from disk."""
        self.loads.observe(seconds)

    def switched(self, before: str, after: str, mode: str, seconds: float) -> None:
        """The model went from one adapter to another."""
        self.switches.labels(mode).inc()
        self.switch_seconds.labels(mode).observe(seconds)


class _OfEngine:
    """The state of an engine at the moment it is asked for."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def collect(self) -> Iterator[Metric]:
        """Yield the series; vLLM's have its names, which routers look for."""
        engine, stats = self.engine, self.engine.cache.stats
        running, waiting = engine.running, engine.waiting
        yield self._adapters(running, waiting)
        for name, what, value in (
            ("vllm:num_requests_running", "Requests that are being answered.", len(running)),
            ("vllm:num_requests_waiting", "Requests that wait.", len(waiting)),
        ):
            gauge = GaugeMetricFamily(name, what, labels=["model_name"])
            gauge.add_metric([engine.base_name], value)
            yield gauge
        yield GaugeMetricFamily("loralab_adapter_cache_bytes", "Adapters in RAM.", engine.cache.bytes)
        if engine.cache.max_bytes is not None:
            yield GaugeMetricFamily(
                "loralab_adapter_cache_max_bytes",
                "Most that adapters may take of RAM.",
                engine.cache.max_bytes,
            )
        for name, what, value in (
            ("loralab_adapter_cache_hits", "Adapters found in RAM.", stats.hits),
            ("loralab_adapter_cache_misses", "Adapters not found in RAM.", stats.misses),
            ("loralab_adapter_cache_evictions", "Adapters that had to leave RAM.", stats.evictions),
            ("loralab_disk_reads", "Adapter files read.", stats.disk_reads),
        ):
            yield CounterMetricFamily(name, what, value)

    def _adapters(self, running: Sequence[Answer], waiting: Sequence[Answer]) -> Metric:
        gauge = GaugeMetricFamily(
            "vllm:lora_requests_info",
            "Adapters of running and of waiting requests; the value is the time.",
            labels=["max_lora", "running_lora_adapters", "waiting_lora_adapters"],
        )
        slots = str(self.engine.settings.slots)
        gauge.add_metric([slots, _names(running), _names(waiting)], time.time())
        return gauge


def _names(answers: Sequence[Answer]) -> str:
    """Return the adapters of some requests, those of a stack one by one."""
    models = {answer.request.model for answer in answers}
    return ",".join(sorted({name for model in models if model for name, _ in parse(model)}))
