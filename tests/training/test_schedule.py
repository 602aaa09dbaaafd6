"""The learning rate and the order of the data, as functions of the step."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_scheduler

from loralab.training.config import RunConfig
from loralab.training.loop import plan
from loralab.training.order import batch_at, steps_per_epoch
from loralab.training.schedule import learning_rate, warmup_of


def rates(steps: int, **settings: object) -> list[float]:
    config = RunConfig(learning_rate=2.0, **settings)
    return [learning_rate(config, step, steps) for step in range(steps)]


def test_linear_falls_in_a_line_that_would_reach_zero_after_the_last_step():
    course = rates(5, lr_scheduler="linear", warmup_steps=0)
    assert course == pytest.approx([2.0, 1.6, 1.2, 0.8, 0.4])


def test_cosine_is_half_way_down_in_the_middle():
    course = rates(8, lr_scheduler="cosine", warmup_steps=0)
    assert course == pytest.approx([1 + math.cos(math.pi * step / 8) for step in range(8)])
    assert course[4] == pytest.approx(1.0)


def test_constant_stays():
    assert rates(6, lr_scheduler="constant", warmup_steps=0) == [2.0] * 6


@pytest.mark.parametrize("scheduler", ["linear", "cosine", "constant"])
def test_warm_up_rises_evenly_to_the_peak_and_never_passes_it(scheduler):
    course = rates(20, lr_scheduler=scheduler, warmup_steps=4)
    assert course[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert max(course) == course[4] == 2.0
    assert all(later <= earlier for earlier, later in pairwise(course[4:]))


@pytest.mark.parametrize("scheduler", ["linear", "cosine", "constant"])
@given(steps=st.integers(1, 60), warmup=st.none() | st.integers(0, 80))
def test_every_step_learns_something_and_none_too_much(scheduler, steps, warmup):
    assert all(0 < rate <= 2.0 for rate in rates(steps, lr_scheduler=scheduler, warmup_steps=warmup))


@pytest.mark.parametrize("scheduler", ["linear", "cosine", "constant"])
def test_a_run_of_one_step_takes_it_at_the_peak(scheduler):
    assert rates(1, lr_scheduler=scheduler) == [2.0]


def test_warm_up_is_a_twentieth_of_the_run_unless_told():
    assert warmup_of(RunConfig(), 400) == 20
    assert warmup_of(RunConfig(), 19) == 0
    assert warmup_of(RunConfig(warmup_steps=0), 400) == 0
    assert warmup_of(RunConfig(warmup_steps=7), 400) == 7


@given(examples=st.integers(1, 40), batch_size=st.integers(1, 50), seed=st.integers(0, 2**32 - 1))
def test_an_epoch_sees_every_example_once(examples, batch_size, seed):
    per_epoch = steps_per_epoch(examples, batch_size)
    for epoch in range(2):
        steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        batches = [batch_at(step, examples, batch_size, seed) for step in steps]
        assert sorted(index for batch in batches for index in batch) == list(range(examples))
        assert all(len(batch) == batch_size for batch in batches[:-1])
        assert len(batches[-1]) == (examples - 1) % batch_size + 1


def test_the_order_depends_on_the_seed_and_the_epoch_and_nothing_else():
    def epoch(number: int, seed: int) -> list[int]:
        return batch_at(number, 30, 30, seed)

    assert epoch(0, seed=1) == epoch(0, seed=1)
    different = [epoch(0, 0), epoch(1, 0), epoch(2, 0), epoch(0, 1), epoch(1, 1), epoch(0, 2**32 - 1)]
    assert len({tuple(order) for order in different}) == len(different)
    assert list(range(30)) not in different


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"epochs": 3}, (75, 8, 8)),
        ({"epochs": 0.5}, (12, 1, 1)),
        ({"epochs": 1e-6}, (1, 1, 1)),
        ({"max_steps": 7}, (7, 1, 1)),
        ({"max_steps": 400, "eval_steps": 50}, (400, 50, 50)),
        ({"max_steps": 400, "save_steps": 30}, (400, 40, 30)),
        ({"max_steps": 4, "eval_steps": 100, "save_steps": 100}, (4, 100, 100)),
    ],
)
def test_the_plan(settings, expected):
    made = plan(RunConfig(batch_size=4, **settings), examples=97)
    assert (made.steps, made.eval_steps, made.save_steps) == expected
    assert made.steps_per_epoch == 25


@pytest.mark.parametrize(("every", "times"), [(1, 13), (5, 4), (6, 3), (12, 2), (100, 2)])
def test_the_plan_counts_what_the_run_does(every, times):
    """Before the first step, every so many steps, and after the last."""
    made = plan(RunConfig(max_steps=12, eval_steps=every, sample_steps=every), examples=97)
    assert (made.evaluations, made.samplings) == (times, times)


@pytest.mark.parametrize(
    ("ours", "settings", "theirs", "more"),
    [
        ("linear", {}, "linear", {}),
        ("cosine", {}, "cosine", {}),
        ("cosine_with_restarts", {"lr_cycles": 3}, "cosine_with_restarts", {"num_cycles": 3}),
        ("polynomial", {"lr_power": 2.0}, "polynomial", {"power": 2.0, "lr_end": 1e-12}),
        ("constant", {}, "constant", {}),
    ],
)
def test_the_courses_are_those_of_transformers(ours, settings, theirs, more):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = get_scheduler(theirs, optimizer, 0, 24, scheduler_specific_kwargs=more)
    expected = []
    for _ in range(24):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    none = {} if ours == "constant" else {"warmup_steps": 0}
    assert rates(24, lr_scheduler=ours, **none, **settings) == pytest.approx(expected, abs=1e-9)


def test_inverse_sqrt_is_half_after_three_times_its_warm_up():
    course = rates(100, lr_scheduler="inverse_sqrt", warmup_steps=10)
    assert course[10] == 2.0
    assert course[10 + 30] == pytest.approx(1.0)


def test_wsd_stays_and_falls_over_the_last_fifth():
    course = rates(100, lr_scheduler="wsd", warmup_steps=0)
    assert course[:81] == pytest.approx([2.0] * 81)
    assert course[90] == pytest.approx(1.0)
    assert course[99] == pytest.approx(0.1)


def test_a_share_of_the_run_warms_up():
    assert warmup_of(RunConfig(warmup_ratio=0.1), 250) == 25
    assert warmup_of(RunConfig(lr_scheduler="constant"), 250) == 0
