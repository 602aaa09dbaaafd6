"""A module around a `LoraModel` that passes for the base model inside."""

import inspect
from types import MethodType
from typing import Any

from torch import nn

from loralab.core.model import LoraModel

__all__ = ["Wrapper"]


class Wrapper(nn.Module):
    """What is not defined here, the base model answers.

    It passes for an instance of its base model's class too, so that code which asks for a `PreTrainedModel`,
    as `transformers.Trainer` does, takes it.
    """

    def __init__(self, base_model: LoraModel) -> None:
        super().__init__()
        self.base_model = base_model
        self._show_signature_of(base_model.model)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        modules = self.__dict__.get("_modules") or {}
        return type(modules["base_model"].model) if "base_model" in modules else type(self)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_model":
                raise
            return getattr(self.base_model, name)

    def __reduce__(self) -> Any:
        state = {name: value for name, value in self.__dict__.items() if name != "forward"}
        return _bare, (type(self),), state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._show_signature_of(self.base_model.model)

    def _show_signature_of(self, model: nn.Module) -> None:
        """Give `forward` the base's signature: Trainer picks a data set's columns by it."""

        def forward(self: Wrapper, *args: Any, **kwargs: Any) -> Any:
            return type(self).forward(self, *args, **kwargs)

        own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        shown = inspect.signature(model.forward)
        parameters = [
            p.replace(kind=p.KEYWORD_ONLY) if p.kind == p.POSITIONAL_ONLY else p
            for p in shown.parameters.values()
        ]
        forward.__signature__ = inspect.Signature([own, *parameters])  # type: ignore[attr-defined]
        self.forward = MethodType(forward, self)

    def _get_name(self) -> str:
        return type(self).__name__


def _bare(kind: type[Wrapper]) -> Wrapper:
    """Return an empty model for pickle and deepcopy to fill; `__class__`, which they ask, is the base's."""
    return kind.__new__(kind)
