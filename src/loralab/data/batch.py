"""Examples become tensors, packed into rows in which no example sees another.

Shape key: B rows, T tokens of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from loralab.core.attention import BOUNDS
from loralab.data.pack import pack
from loralab.data.types import Example
from loralab.errors import DataError

__all__ = ["Batch", "Isolation", "collate", "collate_parts"]

Isolation = Literal["documents", "positions", "mask", "rows"]
"""What keeps the examples of a row apart: their bounds, position ids that restart, an explicit mask, or a row
for each."""

_SHARE = 64
"""A row of all examples is filled up by less than this part of it."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The tensors of one micro-batch."""

    input_ids_BT: Tensor
    """int64 token ids."""
    position_ids_BT: Tensor
    """int64, from 0 in every example and in the padding."""
    weights_BT: Tensor
    """float32: the loss weight of predicting this token from those before it; 0 for padding."""
    documents_BT: Tensor
    """int64: which example of its row a token belongs to, -1 for padding."""

    @property
    def tokens(self) -> int:
        """The number of tokens that are not padding."""
        return int((self.documents_BT >= 0).sum())

    @property
    def trained_weight(self) -> float:
        """The sum of the loss weights, by which the summed loss is divided."""
        return float(self.weights_BT.sum())

    @property
    def fill(self) -> float:
        """The share of the tensor that is not padding."""
        return self.tokens / self.input_ids_BT.numel()

    @property
    def bounds(self) -> Tensor:
        """int64, where the documents of one row begin, and its end; padding belongs to the last of them."""
        starts = (self.documents_BT[0].diff(prepend=self.documents_BT.new_tensor([-2])) > 0).nonzero()[:, 0]
        return torch.cat([starts, starts.new_tensor([self.documents_BT.shape[1]])])

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on a device."""
        return Batch(
            self.input_ids_BT.to(device),
            self.position_ids_BT.to(device),
            self.weights_BT.to(device),
            self.documents_BT.to(device),
        )

    def model_inputs(self, isolation: Isolation, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the arguments of the model's forward.

        "documents" gives the bounds, for `models.attention`, and a mask of one number, which keeps
        transformers from making one. "positions" gives no attention mask: without one, transformers reads
        the documents from where `position_ids` restart, and with one it does not. "mask" adds [B, 1, T, T],
        0 where a token may look and the lowest `dtype` elsewhere.
        "rows" gives the usual [B, T], 1 for tokens and 0 for padding.
        """
        if isolation == "rows":
            return {"input_ids": self.input_ids_BT, "attention_mask": (self.documents_BT >= 0).long()}
        inputs = {"input_ids": self.input_ids_BT, "position_ids": self.position_ids_BT}
        if isolation == "documents":
            inputs |= {BOUNDS: self.bounds, "attention_mask": torch.zeros(1, 1, 1, 1, dtype=dtype)}
        if isolation == "mask":
            inputs["attention_mask"] = self._block_mask(dtype)
        return inputs

    def _block_mask(self, dtype: torch.dtype) -> Tensor:
        # Padding looks at padding: a row of the mask that forbids everything gives NaN in some kernels.
        same_BTT = self.documents_BT[:, :, None] == self.documents_BT[:, None, :]
        allowed_B1TT = same_BTT.tril()[:, None]
        mask_B1TT = torch.zeros(allowed_B1TT.shape, dtype=dtype, device=allowed_B1TT.device)
        return mask_B1TT.masked_fill(~allowed_B1TT, torch.finfo(dtype).min)


def collate(examples: Sequence[Example], pad_id: int, isolation: Isolation) -> Batch:
    """Return the examples as one batch.

    For "documents" they stand in one row, the longest first. For "positions" and "mask" they are packed,
    several to a row as wide as the longest; for "rows" each has its own. Padding stands on the right.

    Raises:
        DataError: there are no examples.
    """
    return collate_parts([examples], pad_id, isolation)[0]


def collate_parts(
    parts: Sequence[Sequence[Example]], pad_id: int, isolation: Isolation
) -> tuple[Batch, list[int]]:
    """Return several lists of examples as one batch, one behind the other, and how much of it each is.

    That is tokens for "documents", where the padding belongs to the last, and rows for the others. Otherwise
    each part is laid out as by `collate`.

    Raises:
        DataError: a part has no examples.
    """
    if not parts or not all(parts):
        raise DataError("a batch needs at least one example.")
    lengths = [[len(example.ids) for example in part] for part in parts]
    if isolation == "documents":
        counts = [sum(own) for own in lengths]
        width = _rounded(sum(counts))
        counts[-1] += width - sum(counts)
        orders = [pack(own, width)[0] for own in lengths]
        rows = [[part[i] for part, order in zip(parts, orders, strict=True) for i in order]]
        return _fill(rows, width, pad_id), counts
    width = max(max(own) for own in lengths)
    rows = []
    counts = []
    for part, own in zip(parts, lengths, strict=True):
        packed = [[index] for index in range(len(part))] if isolation == "rows" else pack(own, width)
        rows += [[part[index] for index in indices] for indices in packed]
        counts.append(len(packed))
    return _fill(rows, width, pad_id), counts


def _fill(rows: Sequence[Sequence[Example]], width: int, pad_id: int) -> Batch:
    """Return the tensors of rows of examples."""
    shape = (len(rows), width)
    ids_BT = torch.full(shape, pad_id, dtype=torch.int64)
    positions_BT = torch.zeros(shape, dtype=torch.int64)
    weights_BT = torch.zeros(shape, dtype=torch.float32)
    documents_BT = torch.full(shape, -1, dtype=torch.int64)
    for row, examples in enumerate(rows):
        start = 0
        for document, example in enumerate(examples):
            end = start + len(example.ids)
            ids_BT[row, start:end] = torch.tensor(example.ids)
            positions_BT[row, start:end] = torch.arange(end - start)
            weights_BT[row, start:end] = torch.tensor(example.weights)
            documents_BT[row, start:end] = document
            start = end
        positions_BT[row, start:] = torch.arange(width - start)
    return Batch(ids_BT, positions_BT, weights_BT, documents_BT)


def _rounded(tokens: int) -> int:
    """Return a slightly larger number, of which there are few: some hardware makes a kernel for each size."""
    step = 1 << max(0, (tokens // _SHARE).bit_length() - 1)
    return -(-tokens // step) * step
