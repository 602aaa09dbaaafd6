"""Single rows of an embedding, trained in full (`trainable_token_indices`).

Shape key: N trained tokens, D width, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from loralab.core.algebra import wide
from loralab.core.layers.activation import Activation
from loralab.core.layers.mergeable import Mergeable
from loralab.core.merge import Merged, Rounding, total
from loralab.core.saved import AuxiliaryTrainingWrapper
from loralab.errors import AdapterError, ConfigError, TargetError

__all__ = ["TOKEN_ROWS", "TrainableTokensLayer", "TrainableTokensWrapper"]

TOKEN_ROWS = "token_adapter.trainable_tokens_delta"
"""The name of an adapter's rows in a file, after the path of the embedding."""


class TrainableTokensLayer(Mergeable):
    """An embedding, or an output head, some of whose rows an adapter replaces.

    `trainable_tokens_delta` holds the new rows themselves, [N, D], not what is added to the old ones: so they
    stay right over an embedding that was resized with new random rows.
    """

    def __init__(
        self, base_layer: nn.Module, activation: Activation, tied: "TrainableTokensLayer | None" = None
    ) -> None:
        """`tied` gives an output head the rows of its embedding."""
        super().__init__(base_layer, activation)
        self.lookup = isinstance(base_layer, nn.Embedding)
        if not self.lookup and type(base_layer).forward is not nn.Linear.forward:
            raise TargetError(
                f"trainable_token_indices: a {type(base_layer).__name__} has no rows of tokens; "
                "name an embedding or a linear output head."
            )
        self._tied = () if tied is None else (tied,)  # in a tuple: no child of this module
        self._indices: dict[str, Tensor] = {}
        self._slots: dict[str, Tensor] = {}
        if tied is None:
            self.trainable_tokens_delta = nn.ParameterDict()

    @property
    def token_indices(self) -> dict[str, list[int]]:
        """The trained tokens by adapter."""
        return {name: index.tolist() for name, index in self._source()._indices.items()}

    @property
    def tied_adapter(self) -> "TrainableTokensLayer | None":
        """The layer whose rows this one uses, if any."""
        return self._tied[0] if self._tied else None

    def _source(self) -> "TrainableTokensLayer":
        return self._tied[0] if self._tied else self

    @property
    def adapters(self) -> tuple[str, ...]:
        return tuple(self._source()._indices)

    def rows(self, name: str) -> nn.Parameter:
        """Return an adapter's rows, [N, D]."""
        rows: nn.Parameter = self._source().trainable_tokens_delta[name]
        return rows

    def update_layer(self, name: str, tokens: Sequence[int], values_ND: Tensor | None = None) -> None:
        """Add an adapter that trains these tokens, from the base's rows or from `values_ND`.

        Raises:
            ConfigError: a token is out of range or named twice.
        """
        weight = self.original_weight
        vocabulary = weight.shape[0]
        wrong = [token for token in tokens if type(token) is not int or not 0 <= token < vocabulary]
        if wrong or not tokens or len(set(tokens)) < len(tokens):
            reason = (
                f"{wrong[0]!r} is not one of 0 to {vocabulary - 1}" if wrong else "expected distinct tokens"
            )
            raise ConfigError(f"trainable_token_indices: {reason}.")
        device = "cpu" if weight.is_meta else weight.device
        index = torch.tensor(tokens, device=device)
        slots = torch.full((vocabulary,), -1, device=device)
        slots[index] = torch.arange(len(tokens), device=device)
        if values_ND is None:
            values_ND = self.dense_weight()[index.to(weight.device)]
        self.trainable_tokens_delta[name] = nn.Parameter(
            values_ND.detach().to(weight.device, wide(weight.dtype), copy=True)
        )
        self._indices[name], self._slots[name] = index, slots

    def delete_adapter(self, name: str) -> None:
        """Forget an adapter; one that is not there is no fault."""
        if name in self.merged_adapters:
            others = [other for other in self.merged_adapters if other != name]
            self.install(others, self.merged_weights(others).parameters)
        if name in self._indices:
            del self._indices[name], self._slots[name], self.trainable_tokens_delta[name]

    def train_adapter(self, name: str, trains: bool) -> None:
        if name in self.adapters:
            self.rows(name).requires_grad_(trains)

    def running(self) -> list[str]:
        """Return the names of the adapters that replace rows now, for all of a batch."""
        return [
            name
            for name in self._activation.running
            if name in self.adapters and name not in self.merged_adapters
        ]

    @property
    def weight(self) -> Any:
        """The weight as it is now, with the rows of the running adapters in it."""
        weight: Tensor = super().weight
        for name in self.running():
            index = self._source()._indices[name].to(weight.device)
            weight = weight.index_copy(0, index, self.rows(name).to(weight.dtype))
        return weight

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the base's output, the trained rows in place of the old ones."""
        output = self._base(x, *args, **kwargs)
        active = self._activation
        if active.enabled and active.rows is not None:
            for name in dict.fromkeys(active.rows):
                if name in self.adapters:
                    index = torch.tensor(active.rows_of(name, x.shape[0]), device=x.device)
                    own = self._replaced(name, x[index], output[index])
                    output = output.index_copy(0, index, own)
        for name in self.running():
            output = self._replaced(name, x, output)
        return output

    def _replaced(self, name: str, x: Tensor, output: Tensor) -> Tensor:
        """Return the output with an adapter's rows in place of the base's."""
        rows_ND = self.rows(name).to(output.dtype)
        if self.lookup:
            slot = self._source()._slots[name].to(x.device)[x]
            new = rows_ND[slot.clamp_min(0)]
            scale = getattr(self.base_layer, "embed_scale", None)
            new = new if scale is None else new * scale
            return torch.where((slot >= 0).unsqueeze(-1), new, output)
        index = self._source()._indices[name].to(x.device)
        bias = None if self.bias is None else self.bias[index]
        scores = nn.functional.linear(x, rows_ND, bias)
        return output.index_copy(-1, index, scores.to(output.dtype))

    def merged_weights(self, names: Sequence[str], rounding: Rounding = "nearest") -> Merged:
        names = sorted(name for name in names if name in self.adapters)
        if not names:
            return Merged()
        self.check_disjoint(names)
        before = self.dense_weight()
        weight = total(before, [])
        for name in names:
            weight[self._source()._indices[name].to(weight.device)] = (
                self.rows(name).detach().to(weight.dtype)
            )
        merged = self.rounded(weight, names, rounding)
        return Merged({self.weight_name: merged}, *self.report(merged, weight, before))

    def install(self, names: Sequence[str], merged: dict[str, nn.Parameter]) -> None:
        """Put merged parameters in place; a head that follows its embedding shows the same tensor as it."""
        theirs = None if self.tied_adapter is None else self.tied_adapter._merged.get(self.weight_name)
        super().install(names, merged if theirs is None else {self.weight_name: theirs})

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Keep the numbers of the tokens where the weight is, so that no forward pass has to move them."""
        super()._apply(fn, recurse)
        weight = self.original_weight
        for table in (self._indices, self._slots):
            table.update(
                {name: index if weight.is_meta else index.to(weight.device) for name, index in table.items()}
            )
        return self

    def check_disjoint(self, names: Sequence[str]) -> None:
        """Raise AdapterError if two of the adapters train one token: there is one row to show."""
        seen: dict[int, str] = {}
        for name in names:
            for token in self.token_indices.get(name, ()):
                if token in seen:
                    raise AdapterError(
                        f"adapters {seen[token]!r} and {name!r} both train token {token}; "
                        "only one of them can run at a time."
                    )
                seen[token] = name


class TrainableTokensWrapper(AuxiliaryTrainingWrapper):
    """An embedding or head in its place in the model, with the `TrainableTokensLayer` around it."""

    def __init__(
        self, original_module: nn.Module, activation: Activation, tied: TrainableTokensLayer | None = None
    ) -> None:
        super().__init__()
        self._activation = activation
        self.token_adapter = TrainableTokensLayer(original_module, activation, tied)

    @property
    def original_module(self) -> nn.Module:
        """The module as it was found."""
        return self.token_adapter.base_layer

    @property
    def shown(self) -> nn.Module:
        return self.original_module

    @property
    def adapters(self) -> tuple[str, ...]:
        return self.token_adapter.adapters

    @property
    def weight(self) -> Any:
        """The weight as it is now."""
        return self.token_adapter.weight

    def delete_adapter(self, name: str) -> None:
        self.token_adapter.delete_adapter(name)

    def train_adapter(self, name: str, trains: bool) -> None:
        self.token_adapter.train_adapter(name, trains)

    def adapter_state_dict_load_map(self, adapter_name: str) -> dict[str, str]:
        return {key: f"{key}.{adapter_name}" for key in self.tensors(adapter_name)}

    def tensors(self, name: str) -> dict[str, Tensor]:
        if name not in self.adapters or self.token_adapter.tied_adapter is not None:
            return {}
        return {TOKEN_ROWS: self.token_adapter.rows(name)}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the module's output with the trained rows."""
        return self.token_adapter(*args, **kwargs)
