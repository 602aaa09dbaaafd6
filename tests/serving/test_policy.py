"""Who goes next: nobody starves, shares are as weighted, seats are bound. On a clock of its own."""

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loralab.serving.policy import Fairness


@dataclass(eq=False)
class Asks:
    """A request of `work` tokens."""

    identity: str
    submitted: float = 0.0
    tenant: str = ""
    alone: bool = False
    work: int = 4
    done: int = 0
    began: float | None = None

    @property
    def left(self) -> int:
        return self.work - self.done


@dataclass
class Hall:
    """An engine without a model: a step is `pace` seconds and writes one token of each running request."""

    fairness: Fairness
    most: int = 64
    pace: float = 0.1
    now: float = 0.0
    waiting: list[Asks] = field(default_factory=list)
    running: list[Asks] = field(default_factory=list)
    finished: list[Asks] = field(default_factory=list)

    def come(self, *asks: Asks) -> None:
        for one in asks:
            one.submitted = self.now
            self.waiting.append(one)

    def step(self) -> None:
        admitted = self.fairness.admit(self.waiting, self.running, self.now)
        assert len({id(one) for one in admitted}) == len(admitted), "nobody is let in twice"
        assert all(any(one is other for other in self.waiting) for one in admitted)
        for one in admitted[: max(0, self.most - len(self.running))]:
            self.waiting.remove(one)
            self.running.append(one)
            one.began = self.now
            self.fairness.count(one, prompt=5)
        self.check()
        for one in list(self.running):
            one.done += 1
            self.fairness.count(one, written=1)
            if not one.left:
                self.running.remove(one)
                self.finished.append(one)
        self.now += self.pace

    def check(self) -> None:
        seated = {one.identity for one in self.running if one.identity}
        assert len(seated) <= self.fairness.slots
        alone = [one for one in self.running if one.alone]
        if alone:
            assert {one.identity for one in self.running} == {alone[0].identity}

    def until(self, one: Asks, most: float) -> float:
        """Go on until a request has begun, and return how long it waited."""
        while one.began is None:
            assert self.now - one.submitted < most, f"still waiting after {self.now - one.submitted:.1f} s"
            self.step()
        return one.began - one.submitted


def test_one_seat_is_given_up_for_who_waits_too_long() -> None:
    hall = Hall(Fairness(slots=1, max_wait=1.0))
    hall.come(Asks("a", work=20))
    hall.step()
    late = Asks("b")
    hall.come(late)
    for _ in range(200):
        if late.began is not None:
            break
        hall.come(Asks("a", work=20))
        hall.step()
    assert late.began is not None
    # It waits until it is late, and then for those of "a" that run: 20 tokens each.
    assert late.began - late.submitted <= 1.0 + 20 * hall.pace + 2 * hall.pace


def test_with_a_seat_free_nobody_waits_for_a_busy_adapter() -> None:
    hall = Hall(Fairness(slots=2))
    hall.come(*(Asks("a", work=50) for _ in range(10)))
    hall.step()
    other = Asks("b")
    hall.come(other)
    assert hall.until(other, 0.2) == 0.0


def test_the_base_takes_no_seat() -> None:
    hall = Hall(Fairness(slots=2))
    hall.come(Asks("a", work=50), Asks("b", work=50), Asks(""), Asks("c"))
    hall.step()
    assert sorted(one.identity for one in hall.running) == ["", "a", "b"]
    assert [one.identity for one in hall.waiting] == ["c"]


def test_the_late_go_before_all_others_the_oldest_first() -> None:
    fairness = Fairness(slots=4, max_wait=3.0)
    asks = [Asks("a", submitted=8.0), Asks("b", submitted=5.0), Asks("c", submitted=4.0), Asks("d", 9.9)]
    fairness.admit(asks, [], 10.0)
    for one in asks[1:3]:
        fairness.count(one, prompt=1000)  # they had the most, which matters to those in time only
    assert [one.identity for one in fairness.admit(asks, [], 10.0)][:2] == ["c", "b"]


@pytest.mark.parametrize(("weight", "share"), [(1.0, 1 / 2), (3.0, 3 / 4)])
def test_tenants_get_what_they_weigh(weight: float, share: float) -> None:
    hall = Hall(Fairness(slots=8, max_wait=1e9, weights={"heavy": weight}), most=4)
    for _ in range(400):
        while sum(one.tenant == "heavy" for one in hall.waiting) < 4:
            hall.come(Asks("a", tenant="heavy"))
        while sum(one.tenant == "light" for one in hall.waiting) < 40:  # asks far more than it gets
            hall.come(Asks("a", tenant="light"))
        hall.step()
    got = Counter(one.tenant for one in hall.finished)
    assert got["heavy"] / got.total() == pytest.approx(share, abs=0.05)


def test_who_comes_back_has_saved_nothing_up() -> None:
    hall = Hall(Fairness(slots=8, max_wait=1e9), most=1)
    hall.come(Asks("a", tenant="back"))
    for _ in range(300):
        while len(hall.waiting) < 3:
            hall.come(Asks("a", tenant="steady"))
        hall.step()
    hall.finished.clear()
    hall.come(*(Asks("a", tenant="back") for _ in range(50)))
    for _ in range(120):
        while sum(one.tenant == "steady" for one in hall.waiting) < 3:
            hall.come(Asks("a", tenant="steady"))
        hall.step()
    got = Counter(one.tenant for one in hall.finished)
    assert got["steady"] >= got.total() * 0.4, "they take turns; the one who paused does not go ahead"


def test_adapters_of_one_tenant_take_turns() -> None:
    hall = Hall(Fairness(slots=1, max_wait=1e9), most=1)
    for _ in range(200):
        while sum(one.identity == "a" for one in hall.waiting) < 20:
            hall.come(Asks("a"))
        while sum(one.identity == "b" for one in hall.waiting) < 1:
            hall.come(Asks("b"))
        hall.step()
    got = Counter(one.identity for one in hall.finished)
    assert got["b"] / got.total() == pytest.approx(0.5, abs=0.1)


def test_who_cannot_run_beside_others_gets_a_turn_and_gives_it_back() -> None:
    hall = Hall(Fairness(slots=4, max_wait=1.0))
    hall.come(Asks("a", work=10))
    hall.step()
    lonely = Asks("x", alone=True, work=10)
    hall.come(lonely)
    mixed: list[Asks] = []
    for turn in range(400):
        mixed.append(Asks("ab"[turn % 2], work=10))
        hall.come(mixed[-1])
        hall.come(Asks("x", alone=True, work=10))
        hall.step()
    assert lonely.began is not None
    assert lonely.began - lonely.submitted <= 1.0 + 12 * hall.pace
    waits = [one.began - one.submitted for one in mixed[:200] if one.began is not None]
    assert len(waits) == 200, "the others have their turns beside a stream of such requests"


def test_counters_of_those_who_left_are_forgotten() -> None:
    fairness = Fairness(slots=2)
    for n in range(100):
        one = Asks(f"a{n}", tenant=f"t{n}")
        fairness.admit([one], [], 0.0)
        fairness.count(one, prompt=3, written=2)
    assert len(fairness._tenants) == len(fairness._adapters) == 1


ARRIVALS = st.lists(
    st.tuples(
        st.integers(0, 40),  # the step at which it comes
        st.sampled_from(["", "a", "b", "c", "d", "e", "X", "Y"]),
        st.sampled_from(["", "t", "u"]),
        st.integers(1, 30),
    ),
    min_size=1,
    max_size=40,
)


@given(arrivals=ARRIVALS, slots=st.integers(1, 4), most=st.integers(1, 8), seed=st.integers(0, 9))
@settings(max_examples=150, deadline=None)
def test_everyone_gets_in_whatever_comes(
    arrivals: list[tuple[int, str, str, int]], slots: int, most: int, seed: int
) -> None:
    hall = Hall(Fairness(slots, max_wait=1.0), most=most)
    random.Random(seed).shuffle(arrivals)
    asks = [
        (at, Asks(identity, tenant=tenant, alone=identity in ("X", "Y"), work=work))
        for at, identity, tenant, work in arrivals
    ]
    work = sum(one.work for _, one in asks)
    for step in range(41 + work + 20 * len(asks) + 50):
        hall.come(*(one for at, one in asks if at == step))
        hall.step()
        if step > 41 and not hall.waiting and not hall.running:
            break
    assert not hall.waiting
    assert len(hall.finished) == len(asks)
