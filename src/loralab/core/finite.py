"""Whether the numbers of an adapter are numbers."""

from torch import Tensor

from loralab.core.adapter import Adapter
from loralab.errors import AdapterError

__all__ = ["check_finite", "not_finite"]


def check_finite(adapter: Adapter, doing: str) -> None:
    """Refuse an adapter with numbers that are no numbers: nothing computed from it would be one.

    Raises:
        AdapterError: names the first tensor with a NaN or an infinity, and counts.
    """
    counts = {key: not_finite(tensor) for key, tensor in adapter.tensors.items()}
    bad = [key for key, count in counts.items() if count]
    if bad:
        more = f", and so are some of {len(bad) - 1} other tensors" if len(bad) > 1 else ""
        raise AdapterError(
            f"cannot {doing}: {counts[bad[0]]} of {adapter.tensors[bad[0]].numel()} numbers of {bad[0]} are "
            f"not finite (NaN or infinity){more}. Its training may have diverged; take an earlier checkpoint."
        )


def not_finite(tensor: Tensor) -> int:
    """Return how many numbers are NaN or infinite."""
    # float8 has no isfinite of its own.
    values = tensor.float() if tensor.dtype.itemsize == 1 else tensor
    return int(values.isfinite().logical_not_().sum())
