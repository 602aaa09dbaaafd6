"""How much each tenant has asked for lately: requests and tokens a minute, and what runs at once."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from loralab.serving.errors import Overloaded
from loralab.serving.http.keys import Tenant

__all__ = ["Quotas"]


@dataclass
class _Bucket:
    """Fills up evenly to what a minute allows; may be overdrawn by what was not known beforehand."""

    per_minute: float
    level: float
    at: float

    def fill(self, per_minute: float, now: float) -> None:
        self.level = min(per_minute, self.level + (now - self.at) * per_minute / 60)
        self.per_minute, self.at = per_minute, now

    def seconds_until(self, level: float) -> float:
        return max(0.0, (level - self.level) * 60 / self.per_minute)


@dataclass
class _Use:
    running: int = 0
    buckets: dict[str, _Bucket] = field(default_factory=dict)


class Quotas:
    """What tenants have used, by name, so that it outlives a new reading of the file."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._uses: dict[str, _Use] = {}
        self._lock = threading.Lock()

    def enter(self, tenant: Tenant, requests: int) -> None:
        """Count `requests` that begin now.

        Raises:
            Overloaded: they would be more than the tenant may have; nothing is counted.
        """
        with self._lock:
            use = self._uses.setdefault(tenant.name, _Use())
            if tenant.max_running is not None and use.running + requests > tenant.max_running:
                raise Overloaded(f"{tenant.name!r} may have {tenant.max_running} requests at once.")
            asked = self._bucket(use, "requests", tenant.requests_per_minute)
            if asked is not None and asked.level < requests:
                raise Overloaded(
                    f"{tenant.name!r} may ask {tenant.requests_per_minute} times a minute.",
                    asked.seconds_until(min(requests, asked.per_minute)),
                )
            tokens = self._bucket(use, "tokens", tenant.tokens_per_minute)
            if tokens is not None and tokens.level <= 0:
                raise Overloaded(
                    f"{tenant.name!r} may have {tenant.tokens_per_minute} tokens a minute.",
                    tokens.seconds_until(1),
                )
            use.running += requests
            if asked is not None:
                asked.level -= requests

    def leave(self, tenant: Tenant, requests: int, tokens: int) -> None:
        """Count requests that have ended, and the tokens that they read and wrote."""
        with self._lock:
            use = self._uses[tenant.name]
            use.running -= requests
            bucket = self._bucket(use, "tokens", tenant.tokens_per_minute)
            if bucket is not None:
                bucket.level -= tokens

    def running(self, tenant: Tenant) -> int:
        """Return how many requests of a tenant run now."""
        with self._lock:
            return self._uses[tenant.name].running if tenant.name in self._uses else 0

    def _bucket(self, use: _Use, what: str, per_minute: int | None) -> _Bucket | None:
        if per_minute is None:
            return None
        now = self._clock()
        bucket = use.buckets.setdefault(what, _Bucket(per_minute, per_minute, now))
        bucket.fill(per_minute, now)
        return bucket
