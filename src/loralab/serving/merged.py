"""Merged placement: the base's weights give way to merged ones, and come back to the bit.

Merged weights are computed once, in fp32, into memory of their own. To switch is to show the modules
other parameters: nothing is added, subtracted or copied, and the base's own weights are never written.
"""

import time
from collections import OrderedDict

import torch
from torch import Tensor, nn

from loralab.core.algebra import wide
from loralab.core.merge import sum_low_rank
from loralab.errors import AdapterError
from loralab.serving.places import Fitted, Part, Place, Places

__all__ = ["Merged"]

Shown = dict[tuple[nn.Module, str], nn.Parameter]
"""Parameters by the module and the name under which they are shown."""


class Merged:
    """Merged weights of some adapters, of which one set or the base's own is shown.

    At most `keep` sets are held; the least recently shown goes first.
    """

    def __init__(self, places: Places, keep: int = 1) -> None:
        self.shown = ""
        """The identity of the adapter whose weights are shown, "" for the base."""
        self._places, self._keep = places, max(1, keep)
        self._sets: OrderedDict[str, Shown] = OrderedDict()
        self._originals: Shown = {}

    def can(self, fitted: Fitted) -> bool:
        """Return whether there are plain weights to merge the adapter into; quantized ones are left alone."""
        return all(self._places.by_path[path].plain for path in fitted.parts)

    def built(self) -> list[str]:
        """Return the identities of the adapters whose merged weights are held."""
        return list(self._sets)

    def build(self, fitted: Fitted) -> None:
        """Compute the merged weights of an adapter, unless they are held. The base is not touched.

        Raises:
            AdapterError: a sum is not finite, or the base is quantized.
        """
        if fitted.identity in self._sets:
            return
        if not self.can(fitted):
            raise AdapterError(f"adapter {fitted.name!r} cannot be merged: the base is quantized.")
        self.make_room()
        merged: Shown = {}
        for path, part in fitted.parts.items():
            place = self._places.by_path[path]
            merged[place.module, "weight"] = self._weight(place, part)
            if part.bias_O is not None:
                merged[place.module, "bias"] = _bias(place, part.bias_O)
        for path, value in fitted.whole.items():
            owner, _, name = path.rpartition(".")
            before = self._places.parameters[path]
            merged[self._places.modules[owner], name] = _frozen(value.to(before.device, before.dtype))
        self._sets[fitted.identity] = merged

    def make_room(self) -> None:
        """Forget the least recently shown sets until another one may be held."""
        while len(self._sets) >= self._keep:
            oldest = next((identity for identity in self._sets if identity != self.shown), None)
            if oldest is None:
                self.show("")
                continue
            del self._sets[oldest]

    def show(self, identity: str) -> float:
        """Show the weights of an adapter that was built, or the base's for ""; return the seconds it took."""
        if identity == self.shown:
            return 0.0
        began = time.perf_counter()
        wanted = self._sets[identity] if identity else {}
        for (module, name), parameter in self._originals.items():
            if (module, name) not in wanted:
                module._parameters[name] = parameter
        originals = self._originals
        self._originals = {}
        for key, parameter in wanted.items():
            module, name = key
            self._originals[key] = originals[key] if key in originals else _own(module, name)
            module._parameters[name] = parameter
        self.shown = identity
        if identity:
            self._sets.move_to_end(identity)
        return time.perf_counter() - began

    def forget(self, identity: str) -> None:
        """Drop the merged weights of an adapter; if they are shown, the base's are shown first."""
        if self.shown == identity:
            self.show("")
        self._sets.pop(identity, None)

    def _weight(self, place: Place, part: Part) -> nn.Parameter:
        weight_OI = place.weight_OI()
        a_RI, b_OR = part.a_RI.to(weight_OI.device), part.b_OR.to(weight_OI.device)
        if part.gain_O is None:
            merged_OI = sum_low_rank(weight_OI, (a_RI, b_OR, part.scaling))
        else:
            dtype = wide(weight_OI.dtype)
            sums_OI = weight_OI.to(dtype) + (b_OR.to(dtype) @ a_RI.to(dtype)) * part.scaling
            gain_O = part.gain_O.to(weight_OI.device, dtype)
            merged_OI = sums_OI.mul_(gain_O[:, None]).to(weight_OI.dtype)
        if not bool(torch.isfinite(merged_OI.sum(dtype=torch.float32))):
            raise AdapterError(f"{place.path}: the merged weight is not finite in {weight_OI.dtype}.")
        return _frozen(merged_OI.t() if place.transposed else merged_OI)


def _bias(place: Place, more_O: Tensor) -> nn.Parameter:
    more_O = more_O.to(place.weight.device)
    total_O = more_O if place.bias is None else place.bias.detach().float() + more_O
    return _frozen(total_O.to(place.weight.dtype))


def _own(module: nn.Module, name: str) -> nn.Parameter:
    return module._parameters[name]  # type: ignore[return-value]


def _frozen(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.contiguous(), requires_grad=False)
