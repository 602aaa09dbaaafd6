"""Names of what PEFT has and loralab has not: they exist, and say so when they are used."""

from typing import Any

from loralab.errors import ConfigError

__all__ = ["inner_part", "other_method", "other_setting", "refused_function"]


class _Refused(type):
    """A class that can be imported and asked about, and refuses to be used."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        raise ConfigError(f"{cls.__name__}: {cls.__doc__}")

    def __getattr__(cls, name: str) -> Any:
        # Tools that inspect classes ask for names with underscores and expect no more than a no.
        if name.startswith("_"):
            raise AttributeError(name)
        if name == "adapter_layer_names":  # diffusers goes through these of all kinds of layers
            return ()
        raise ConfigError(f"{cls.__name__}.{name}: {cls.__doc__}")


def other_method(name: str) -> type:
    """Return a class under the name of another method's config, model or layer, which refuses to be used.

    ``isinstance(config, PrefixTuningConfig)`` is answered: no.
    """
    says = (
        "not LoRA; loralab trains LoRA adapters only, so use LoraConfig, or the peft package for this method."
    )
    return _Refused(name, (), {"__doc__": says})


def other_setting(name: str) -> type:
    """Return a class under the name of a part of LoRA's settings that is missing; it refuses to be used."""
    says = "not implemented; an adapter that needs it is refused, so leave it out or use the peft package."
    return _Refused(name, (), {"__doc__": says})


def inner_part(name: str) -> type:
    """Return a class under the name of an inner part of PEFT that is another here; it refuses to be used."""
    says = "an inner part of PEFT; a variant of LoRA is a file in loralab/core/variants."
    return _Refused(name, (), {"__doc__": says})


def refused_function(name: str, why: str) -> Any:
    """Return a function that refuses to be called, and says why."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise ConfigError(f"{name}: {why}")

    refuse.__name__ = refuse.__qualname__ = name
    refuse.__doc__ = f"Refuse: {why}"
    return refuse
