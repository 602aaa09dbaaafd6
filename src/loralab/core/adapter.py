"""`Adapter`: a config and its tensors, with no model attached. The noun that travels.

Shape key: I in, O out, R rank.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from loralab.core.config import LoraConfig
from loralab.errors import AdapterError

__all__ = ["Adapter", "Factors"]

_FACTORS = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_embedding_A": "a",
    ".lora_embedding_B": "b",
}


@dataclass(frozen=True)
class Factors:
    """The factors of one module as matrices: its delta is scaling * b_OR @ a_RI.

    A convolution's kernel is flattened into I.
    """

    a_RI: Tensor
    b_OR: Tensor
    scaling: float

    @property
    def rank(self) -> int:
        """The number of rows of A."""
        return self.a_RI.shape[0]

    def product(self) -> Tensor:
        """Return the delta, scaling * B A, shape [O, I], in fp32 or wider."""
        dtype = torch.promote_types(self.a_RI.dtype, torch.float32)
        return (self.b_OR.to(dtype) @ self.a_RI.to(dtype)) * self.scaling

    def norm(self) -> float:
        """Return the Frobenius norm of the delta, without building it: |B A|^2 = <B^T B, A A^T>."""
        a, b = self.a_RI.detach().double(), self.b_OR.detach().double()
        squared = ((b.t() @ b) * (a @ a.t())).sum().clamp_min(0)
        return float(squared.sqrt()) * abs(self.scaling)

    def inner(self, other: "Factors") -> float:
        """Return the inner product of two deltas, unbuilt: <B1 A1, B2 A2> = <B1^T B2, A1 A2^T>."""
        b = self.b_OR.detach().double().t() @ other.b_OR.detach().double()
        a = self.a_RI.detach().double() @ other.a_RI.detach().double().t()
        return float((b * a).sum()) * self.scaling * other.scaling

    def cosine(self, other: "Factors") -> float:
        """Return the cosine of the angle between two deltas seen as vectors; 0 if one of them is zero."""
        norms = self.norm() * other.norm()
        return self.inner(other) / norms if norms else 0.0


@dataclass(frozen=True)
class Adapter:
    """A config and the tensors of one adapter.

    `tensors` has the keys of a PEFT file without their leading ``base_model.model.``: a module path, then
    ``.lora_A.weight`` and so on.
    """

    config: LoraConfig
    tensors: Mapping[str, Tensor]

    def modules(self) -> dict[str, Factors]:
        """Return the factors of every adapted module by its path; of each stacked expert as ``path[3]``.

        Raises:
            AdapterError: a factor is no matrix.
        """
        found: dict[str, dict[str, Tensor]] = {}
        for key, tensor in self.tensors.items():
            for ending, side in _FACTORS.items():
                if key.endswith(ending):
                    if tensor.dim() < 2:
                        raise AdapterError(
                            f"{key} has shape {list(tensor.shape)}; expected a matrix. Is the file damaged?"
                        )
                    found.setdefault(key.removesuffix(ending), {})[side] = tensor.flatten(1)
        factors: dict[str, Factors] = {}
        for path, sides in found.items():
            if len(sides) == 2:
                factors |= self._factors_at(path, sides["a"], sides["b"])
        return factors

    def _factors_at(self, path: str, a_RI: Tensor, b_OR: Tensor) -> dict[str, Factors]:
        # What PEFT wraps inside another wrapper has the outer one's rank and scale.
        outer = path.partition(".base_layer")[0]
        rank, scaling = self.config.rank_of(outer), self.config.scaling_of(outer)
        experts, rest = divmod(a_RI.shape[0], rank)
        if not self.config.target_parameters or experts < 2 or rest:
            return {path: Factors(a_RI, b_OR, scaling)}
        a_ERI = a_RI.reshape(experts, rank, -1)
        b_ORE = b_OR.reshape(-1, rank, experts)
        return {f"{path}[{e}]": Factors(a_ERI[e], b_ORE[..., e], scaling) for e in range(experts)}

    @property
    def parameters(self) -> int:
        """The number of numbers in all tensors."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    def digest(self) -> str:
        """Return the sha256 of the config and the tensors: two adapters of one digest compute the same."""
        sha = hashlib.sha256(self.config.to_json().encode())
        for key in sorted(self.tensors):
            tensor = self.tensors[key].detach().cpu().contiguous()
            sha.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            sha.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
        return sha.hexdigest()
