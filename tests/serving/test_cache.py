"""Adapters in memory: bytes that are counted, reads that happen once, and nothing taken that is in use."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from loralab.adapters.habits import Habits
from loralab.errors import AdapterError
from loralab.serving.cache import AdapterCache, Read
from loralab.serving.errors import Full, UnknownModel
from loralab.serving.places import Fitted

SIZE = 100


def make(name: str, identity: str = "", size: int = SIZE) -> Read:
    buffer = torch.zeros(size, dtype=torch.uint8)
    return Read(Fitted(name, identity or name, {}, buffer=buffer), Habits(), Path(name))


class Shelf:
    """What is read from, with a count of the reads; a name with "twin" has the content of all such."""

    def __init__(self) -> None:
        self.reads: Counter[str] = Counter()
        self.open = threading.Event()
        self.open.set()
        self.dropped: list[str] = []

    def read(self, name: str) -> Read:
        assert self.open.wait(30)
        self.reads[name] += 1
        if name.startswith("no"):
            raise UnknownModel(name)
        if name.startswith("bad"):
            raise AdapterError(name)
        size = 10 * SIZE if name.startswith("large") else SIZE
        return make(name, "twin" if name.startswith("twin") else name, size)


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def cache(shelf: Shelf) -> Any:
    """Room for three adapters."""
    made = AdapterCache(shelf.read, 3 * SIZE, dropped=shelf.dropped.append)
    yield made
    made.close()


def use(cache: AdapterCache, *names: str) -> None:
    for name in names:
        with cache.using(name):
            pass


def names(cache: AdapterCache) -> list[str]:
    return [held.name for held in cache.held()]


def test_the_least_recently_used_makes_room(cache: AdapterCache, shelf: Shelf) -> None:
    use(cache, "a", "b", "c", "a", "d")
    assert names(cache) == ["c", "a", "d"]
    assert shelf.dropped == ["b"]
    assert (cache.bytes, len(cache)) == (3 * SIZE, 3)
    stats = cache.stats
    assert (stats.hits, stats.misses, stats.evictions, stats.disk_reads) == (1, 4, 1, 4)
    use(cache, "b")
    assert shelf.reads == {"a": 1, "b": 2, "c": 1, "d": 1}


def test_looking_is_no_use(cache: AdapterCache) -> None:
    use(cache, "a", "b", "c")
    assert cache.peek("a") is not None
    assert cache.peek("x") is None
    use(cache, "d")
    assert names(cache) == ["b", "c", "d"]


def test_what_is_in_use_or_pinned_stays(cache: AdapterCache) -> None:
    held = cache.acquire("a")
    use(cache, "b")
    cache.pin("b", True)
    use(cache, "c", "d", "e", "f")
    assert names(cache) == ["a", "b", "f"]
    with cache.using("g"):
        assert set(names(cache)) == {"a", "b", "g"}
        with pytest.raises(Full, match=r"100 bytes; of 300 .* 300 are pinned or in use"):
            use(cache, "h")
        assert set(names(cache)) == {"a", "b", "g"}
    cache.release(held)
    cache.pin("b", False)
    use(cache, "x", "y", "z")
    assert names(cache) == ["x", "y", "z"]


def test_what_will_not_fit_takes_nothing_away(cache: AdapterCache) -> None:
    use(cache, "a", "b", "c")
    with pytest.raises(Full):
        use(cache, "large")
    assert names(cache) == ["a", "b", "c"]
    assert cache.stats.evictions == 0


def test_twenty_who_ask_at_once_cause_one_read(cache: AdapterCache, shelf: Shelf) -> None:
    shelf.open.clear()
    with ThreadPoolExecutor(20) as pool:
        asked = [pool.submit(cache.acquire, "a") for _ in range(20)]
        time.sleep(0.05)
        shelf.open.set()
        held = {id(one.result(30)) for one in asked}
    assert len(held) == 1
    assert shelf.reads == {"a": 1}
    found = cache.peek("a")
    assert found is not None
    assert found.uses == 20


def test_a_read_that_fails_fails_for_all_and_is_tried_again(cache: AdapterCache, shelf: Shelf) -> None:
    for name, error in (("none", UnknownModel), ("bad", AdapterError)):
        for count in (1, 2):
            with pytest.raises(error):
                cache.acquire(name)
            assert shelf.reads[name] == count
    assert (cache.bytes, names(cache)) == (0, [])


def test_others_go_on_while_one_is_read(cache: AdapterCache, shelf: Shelf) -> None:
    use(cache, "a")
    shelf.open.clear()
    waits = cache.prefetch("b")
    assert cache.prefetch("b") is waits
    use(cache, "a")  # would hang if the lock were held
    assert cache.peek("b") is None
    shelf.open.set()
    assert waits.result(30).name == "b"


def test_one_content_under_two_names_takes_its_memory_once(cache: AdapterCache, shelf: Shelf) -> None:
    use(cache, "twin1", "twin2")
    one, two = (cache.peek(name) for name in ("twin1", "twin2"))
    assert one is not None
    assert two is not None
    assert one.fitted is two.fitted
    assert cache.bytes == SIZE
    cache.remove("twin1")
    assert (cache.bytes, shelf.dropped) == (SIZE, [])
    cache.remove("twin2")
    assert (cache.bytes, shelf.dropped) == (0, ["twin"])


def test_unloaded_while_in_use_it_goes_with_its_last_use(cache: AdapterCache, shelf: Shelf) -> None:
    first, second = cache.acquire("a"), cache.acquire("a")
    cache.remove("a")
    assert cache.peek("a") is None
    assert cache.bytes == SIZE
    cache.release(first)
    assert (cache.bytes, shelf.dropped) == (SIZE, [])
    cache.release(second)
    assert (cache.bytes, shelf.dropped) == (0, ["a"])
    with pytest.raises(UnknownModel):
        cache.remove("a")


def test_a_name_with_new_content_serves_the_new_and_keeps_the_old_for_who_holds_it(
    cache: AdapterCache, shelf: Shelf
) -> None:
    old = cache.acquire("a")
    new = cache.put("a", make("a", "other"))
    assert cache.acquire("a") is new
    assert (old.fitted.identity, new.fitted.identity) == ("a", "other")
    assert cache.bytes == 2 * SIZE
    cache.release(old)
    assert (cache.bytes, shelf.dropped) == (SIZE, ["a"])


def test_the_same_content_put_again_keeps_its_memory(cache: AdapterCache, shelf: Shelf) -> None:
    use(cache, "a")
    cache.put("a", make("a"))
    assert (cache.bytes, shelf.dropped, names(cache)) == (SIZE, [], ["a"])


def test_new_content_takes_the_place_of_the_old_where_there_is_no_more(shelf: Shelf) -> None:
    cache = AdapterCache(shelf.read, SIZE)
    use(cache, "a")
    assert cache.put("a", make("a", "other")).fitted.identity == "other"
    assert cache.bytes == SIZE
    with cache.using("a"), pytest.raises(Full):
        cache.put("a", make("a", "third"))
    found = cache.peek("a")
    assert found is not None
    assert found.fitted.identity == "other"


def test_two_thousand_adapters_cost_as_much_each_as_the_first(shelf: Shelf) -> None:
    cache = AdapterCache(shelf.read, dropped=shelf.dropped.append)
    touched = 0

    class Counted(type(cache._held)):  # type: ignore[misc]
        """Counts how many entries are walked over."""

        def __iter__(self) -> Any:
            nonlocal touched
            for key in super().__iter__():
                touched += 1
                yield key

    cache._held = Counted()
    use(cache, *(f"a{n}" for n in range(2000)))
    assert (len(cache), cache.bytes, touched) == (2000, 2000 * SIZE, 0)
    cache.max_bytes = 2000 * SIZE
    use(cache, *(f"b{n}" for n in range(100)))
    assert (len(cache), cache.bytes) == (2000, 2000 * SIZE)
    for name in names(cache):
        cache.remove(name)
    assert (cache.bytes, len(cache), len(cache._buffers), len(shelf.dropped)) == (0, 0, 0, 2100)
    cache.close()


def test_many_threads_over_too_little_memory_leave_no_byte_behind(shelf: Shelf) -> None:
    cache = AdapterCache(shelf.read, 8 * SIZE, readers=4)

    def work(seed: int) -> None:
        for step in range(60):
            with cache.using(f"a{(seed * 7 + step * 3) % 12}") as held:
                assert cache.bytes <= 8 * SIZE
                assert not held.gone

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work, seed) for seed in range(4)]:
            done.result(60)
    assert len(cache._leaving) == 0
    for name in names(cache):
        cache.remove(name)
    assert cache.bytes == 0
    cache.close()


class AnyOrder(RuleBasedStateMachine):
    """Whatever is done in whatever order, bytes add up and what is held stays."""

    def __init__(self) -> None:
        super().__init__()
        self.shelf = Shelf()
        self.cache = AdapterCache(self.shelf.read, 3 * SIZE)
        self.mine: list[Any] = []
        self.version = 0

    NAMES = st.sampled_from(["a", "b", "c", "d", "twin1", "twin2", "large"])

    def _try(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except (Full, UnknownModel):
            return None

    @rule(name=NAMES)
    def acquire(self, name: str) -> None:
        held = self._try(lambda: self.cache.acquire(name))
        if held is not None:
            self.mine.append(held)

    @rule()
    def release(self) -> None:
        if self.mine:
            self.cache.release(self.mine.pop(0))

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        self._try(lambda: self.cache.remove(name))

    @rule(name=NAMES, pinned=st.booleans())
    def pin(self, name: str, pinned: bool) -> None:
        self._try(lambda: self.cache.pin(name, pinned))

    @rule(name=NAMES)
    def replace(self, name: str) -> None:
        self.version += 1
        self._try(lambda: self.cache.put(name, make(name, f"{name}-{self.version}")))

    @invariant()
    def adds_up(self) -> None:
        held = [*self.cache.held(), *self.mine]
        identities = {one.fitted.identity: one.fitted.nbytes for one in held}
        assert self.cache.bytes == sum(identities.values()) <= 3 * SIZE
        assert set(self.cache._buffers) == set(identities)

    def teardown(self) -> None:
        for held in self.mine:
            self.cache.release(held)
        for held in self.cache.held():
            self.cache.remove(held.name)
        assert self.cache.bytes == 0
        self.cache.close()


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_identity_is_the_content_and_the_config(family: Any, llama: Any, tmp_path: Path) -> None:
    """Not the name, nor the folder; what a scale changes is another adapter."""
    import json
    import shutil

    from loralab.serving.places import Places
    from loralab.serving.reading import Roots

    shutil.copytree(llama.adapters / "four", tmp_path / "copy")
    shutil.copytree(llama.adapters / "four", tmp_path / "scaled")
    path = tmp_path / "scaled" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": 9}))
    places = Places(llama.load().model)

    def fit(folder: Path) -> SimpleNamespace | Any:
        return places.fit(Roots([folder.parent]).read(folder), folder.name)

    four, copy = fit(llama.adapters / "four"), fit(tmp_path / "copy")
    assert four.identity == copy.identity
    assert len({four.identity, fit(tmp_path / "scaled").identity, fit(llama.adapters / "five").identity}) == 3
    assert four.buffer.nbytes >= sum(p.a_RI.nbytes + p.b_OR.nbytes for p in four.parts.values())
    begins = four.buffer.data_ptr()
    for part in four.parts.values():
        for tensor in (part.a_RI, part.b_OR):
            assert begins <= tensor.data_ptr() < begins + four.buffer.nbytes, "one piece of memory"
