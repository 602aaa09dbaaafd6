"""Whether a run that goes on is still the run that began: the same settings, the same data."""

from collections.abc import Mapping
from typing import Any

from loralab.errors import CheckpointError
from loralab.training.config import RunConfig
from loralab.training.run import Run

__all__ = ["check_unchanged", "settings_to_keep"]

_MAY_CHANGE = (
    # The data's content is held to its fingerprint.
    *("name", "runs", "data", "eval_data"),
    *("save_steps", "keep_checkpoints", "stop_at_loss"),
    *("sample_prompts", "sample_steps", "general_data", "report_to"),
    *("activation_checkpointing", "max_memory", "allow_pickle", "shard"),
)
"""Settings that change neither a step nor which of them the adapter is taken from."""


def settings_to_keep(config: RunConfig) -> dict[str, Any]:
    """Return the settings that a run is held to when it goes on, as JSON values."""
    return config.model_dump(mode="json", exclude=set(_MAY_CHANGE))


def check_unchanged(run: Run) -> None:
    """Hold a run to what it began with: with other settings or rows it would be another run.

    Raises:
        CheckpointError: they have changed; the message names all that did.
    """
    before = run.folder.plan()
    name = run.folder.name
    changed = _changed(before.get("settings", {}), settings_to_keep(run.config))
    had, has = before.get("eval_fingerprint", run.eval_data) is not None, run.eval_data is not None
    if not changed and had is not has:
        words = ("left out", "given")
        changed = [f"eval_data was {words[had]}, now {words[has]}"]
    if changed:
        raise CheckpointError(
            f"{run.folder.path / 'config.toml'} has changed since the run began: {'; '.join(changed)}. So it "
            f"would become another run: put it back, or start a new one with --like {name}."
        )
    for file, data, key in (
        (run.config.data, run.data, "data_fingerprint"),
        (run.config.eval_data, run.eval_data, "eval_fingerprint"),
    ):
        if data and before.get(key) not in (None, data.fingerprint):
            raise CheckpointError(
                f"{file or run.config.data} has changed since run {name!r} began, so the run cannot "
                "go on as it was. Put the file back, or start a new run."
            )


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    # A setting that is new since then is not in what was kept.
    return [
        f"{name} was {_shown(was)}, now {_shown(now[name])}"
        for name, was in before.items()
        if name in now and now[name] != was
    ]


def _shown(value: object) -> str:
    return "left out" if value is None else repr(value)
