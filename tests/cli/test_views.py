"""The time that is left: of steps, and of the evaluations and samplings still to come."""

from loralab.cli.output import Output, Screen, duration
from loralab.cli.views import Length, view
from loralab.training.events import Evaluated, Event, Paused, Sampled, Saved, Started, Stepped


def stepped(step: int) -> Stepped:
    return Stepped(step, 3.0, 1e-3, 0.5, 100, 1.0, 1.0, 2.5)


def course(steps: int, *, evaluation: float = 0.0, sampling: float = 0.0) -> list[tuple[float, Event]]:
    """The events of a run of steps of a second that is evaluated every 4 and samples every 5."""
    now = 1e9
    events: list[tuple[float, Event]] = [(now, Started(0, steps, 9, 10, 100, "rows"))]
    if sampling:
        now += sampling
        events.append((now, Sampled(0, "a", "b")))
        events.append((now, Sampled(0, "c", "d")))
    for step in range(1, steps + 1):
        is_last = step == steps
        now += 1.0 + (evaluation if step % 4 == 0 or is_last else 0.0)
        events.append((now, stepped(step)))
        if evaluation and (step % 4 == 0 or is_last):
            events.append((now, Evaluated(step, 1.0, 9, best=False)))
        if sampling and (step % 5 == 0 or is_last):
            now += sampling
            events.append((now, Sampled(step, "a", "b")))
            events.append((now, Sampled(step, "c", "d")))
    return events


def told(length: Length, events: list[tuple[float, Event]], capsys) -> dict[int, str]:
    """What is said to be left after each step."""
    screen = Screen(Output(plain=True))
    with view({"run": length}, screen) as shown:
        for at, event in events:
            shown.show("run", event, at)
    lines = [line for line in capsys.readouterr().out.splitlines() if " left" in line]
    return {int(line.split()[1].split("/")[0]): line.rpartition("  ")[2] for line in lines}


def real(events: list[tuple[float, Event]]) -> dict[int, float]:
    """The seconds that are really left after each step."""
    end = events[-1][0]
    return {event.step: end - at for at, event in events if isinstance(event, Stepped)}


def test_evaluations_and_samplings_to_come_are_counted(capsys):
    events = course(18, evaluation=20.0, sampling=7.0)
    length = Length(18, 4, 5, evaluation=20.0, sampling=7.0)
    found = told(length, events, capsys)
    assert list(found) == list(range(2, 19))
    assert found == {step: f"{duration(left)} left" for step, left in real(events).items() if step > 1}


def test_what_was_forecast_counts_until_it_was_seen(capsys):
    events = course(18, evaluation=20.0)
    unknown = told(Length(18, 4), events, capsys)
    left = real(events)
    assert unknown[2] == "16 s left", "of the evaluations nothing is known yet"
    assert unknown[4] == f"{duration(left[4])} left"
    wrong = told(Length(18, 4, evaluation=1.0), events, capsys)
    assert (wrong[2], wrong[4]) == ("21 s left", f"{duration(left[4])} left")


def test_saving_is_part_of_the_pace_and_a_pause_is_not(capsys):
    now = 1e9
    events: list[tuple[float, Event]] = [(now, Started(0, 20, 9, 10, 100, "rows"))]
    for step in range(1, 11):
        now += 1.0
        events.append((now, stepped(step)))
        now += 0.5
        events.append((now, Saved(step, "there")))
        if step == 5:
            events.append((now, Paused(step)))
            now += 1000.0
    found = told(Length(20), events, capsys)
    assert found[10] == "14 s left", "ten steps of a second, and most of ten savings"
