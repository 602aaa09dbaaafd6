"""What the numbers of a run mean, in words, and what to try."""

from dataclasses import dataclass
from statistics import median

from loralab.core.describe import Description
from loralab.training.config import RunConfig
from loralab.training.history import History
from loralab.training.loop import perplexity
from loralab.training.report.measuring import Effect

__all__ = ["advise", "kept_rank", "relative_norms"]

_MOVED = 0.01
"""Relative change of a loss that counts as one."""
_FEW_TOKENS = 1000
_FEW_STEPS = 20
_ENERGY = 0.99


@dataclass(frozen=True)
class _Case:
    config: RunConfig
    history: History
    effect: Effect | None
    layers: tuple[Description, ...]


def advise(
    config: RunConfig, history: History, effect: Effect | None, layers: tuple[Description, ...]
) -> list[str]:
    """Return sentences about a run, the most important first."""
    case = _Case(config, history, effect, layers)
    return [
        line for look in (_no_effect, _held_out, _course, _general, _training, _rank) for line in look(case)
    ]


def relative_norms(layers: tuple[Description, ...], weights: dict[str, float]) -> dict[str, float]:
    """Return |scaling B A| / |W| of each module of which both are known, the largest first."""
    found = {
        layer.module: layer.norm / weights[layer.module]
        for layer in layers
        if layer.norm is not None and weights.get(layer.module)
    }
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def kept_rank(spectrum: tuple[float, ...]) -> int:
    """Return how many singular values hold 99 % of the energy, the sum of their squares."""
    total = sum(value**2 for value in spectrum)
    held = 0.0
    for rank, value in enumerate(spectrum, 1):
        held += value**2
        if held >= _ENERGY * total:
            return rank
    return len(spectrum)


def _no_effect(case: _Case) -> list[str]:
    changed = case.effect.changed if case.effect else None
    if changed != 0:
        return []
    return [
        "**It changes hardly anything**: on the general text the model finds the same token likeliest at "
        "every place, with and without it. A higher `learning_rate`, or more steps, would show."
    ]


def _held_out(case: _Case) -> list[str]:
    history, finished = case.history, case.history.finished
    if not history.evaluations:
        return [
            "**There is no validation data**, so nothing here says how it does on text that it has not seen. "
            "`eval_split = 0.05` holds a twentieth of the rows out."
        ]
    if finished is None or finished.base_loss is None or finished.loss is None:
        return []
    before, after, tokens = finished.base_loss, finished.loss, history.evaluations[-1].tokens
    lines = []
    if after >= before:
        lines.append(
            f"**It is no better than the base** on the validation data: loss {after:.4f}, the base's is "
            f"{before:.4f}. Look whether the validation data is of the same kind as the training data; if it "
            "is, try a lower `learning_rate`."
        )
    else:
        lines.append(
            f"On the validation data the perplexity falls from {perplexity(before):.2f} to "
            f"{perplexity(after):.2f}: before each trained token the model is as unsure as if it chose among "
            "so many that are equally likely."
        )
    if len(history.evaluations) > 1 and case.config.keep_best:
        lines.append(
            f"Step {finished.chosen_step} was chosen by this same data, so its loss flatters a little. For a "
            "number to quote, measure with `loralab eval` on rows that were used for nothing else."
        )
    if tokens < _FEW_TOKENS:
        lines.append(f"The validation data has {tokens} trained tokens; its second digit is chance.")
    return lines


def _course(case: _Case) -> list[str]:
    evaluations, smoothed = case.history.evaluations, case.history.smoothed
    if len(evaluations) < 3 or not smoothed:
        return []
    best = min(evaluations, key=lambda event: event.loss)
    last = evaluations[-1]
    by_step = dict(zip((event.step for event in case.history.steps), smoothed, strict=True))
    at_best, at_last = by_step.get(best.step), by_step.get(last.step)
    if at_best is None or at_last is None:
        return []
    if last.loss > best.loss * (1 + _MOVED) and at_last < at_best:
        kept = (
            f"The adapter is that of step {best.step}."
            if case.config.keep_best
            else "The adapter is that of the last step all the same, as `keep_best` is off."
        )
        return [
            f"**It overfits from step {best.step} on**: the validation loss rises from {best.loss:.4f} to "
            f"{last.loss:.4f} while the training loss falls from {at_best:.3f} to {at_last:.3f}. {kept} More "
            "data helps most; else fewer `epochs`, a lower `r` or `learning_rate`, or `lora_dropout` 0.05."
        ]
    if best is last and last.loss < evaluations[-2].loss * (1 - _MOVED):
        return [
            f"The validation loss was still falling at the end ({evaluations[-2].loss:.4f} to "
            f"{last.loss:.4f} in the last {last.step - evaluations[-2].step} steps): more `epochs` would "
            "lower it further."
        ]
    return []


def _general(case: _Case) -> list[str]:
    found = case.effect
    if found is None or found.loss is None:
        return []
    rise = found.loss - found.base_loss
    if rise < 0.05:
        return [
            f"On general text the loss goes from {found.base_loss:.3f} to {found.loss:.3f}: what the base "
            "knew of it is kept."
        ]
    factor = perplexity(rise)
    if rise < 0.3:
        return [
            f"On general text the loss goes from {found.base_loss:.3f} to {found.loss:.3f}, the perplexity "
            f"times {factor:.2f}: a little is forgotten, which is usual."
        ]
    return [
        f"**Much of the general text is forgotten**: the loss goes from {found.base_loss:.3f} to "
        f"{found.loss:.3f}, the perplexity times {factor:.2f}. If it is to do other things too, mix general "
        "rows into the data, or lower `learning_rate`, `r` or `epochs`."
    ]


def _training(case: _Case) -> list[str]:
    steps, lines = case.history.steps, []
    if steps and len(steps) < _FEW_STEPS and case.history.finished:
        lines.append(f"{len(steps)} steps are few: the learning rate hardly had time to rise and fall.")
    if case.history.smoothed and case.history.smoothed[-1] < 0.05:
        lines.append(
            f"The training loss ended at {case.history.smoothed[-1]:.3f}: the rows are known by heart. That "
            "is wanted for a lookup, and else more than is good."
        )
    return lines


def _rank(case: _Case) -> list[str]:
    ranks = [(kept_rank(layer.spectrum), layer.r) for layer in case.layers if layer.spectrum]
    if not ranks:
        return []
    middle, r = median(rank for rank, _ in ranks), median(r for _, r in ranks)
    if r >= 8 and middle <= r / 4:
        return [
            f"In half of the modules {middle:g} directions or fewer hold {_ENERGY:.0%} of the change, with "
            f"rank {r:g}: `r` {max(2, 2 * middle):g} might do as well, and `loralab resize` makes it smaller "
            "now."
        ]
    return []
