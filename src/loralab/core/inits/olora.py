"""``"olora"``: start from an orthonormal basis of W's columns (Buyukakyuz 2024, arXiv 2406.01775).

B takes the first r columns of Q in W = Q R, A the first r rows of R, and the base gives up scaling * B A.
"""

import torch
from torch import Tensor

from loralab.core.inits import Start, no_option

CHANGES_BASE = True
check = no_option


def init(start: Start, option: str) -> Tensor:
    """Fill both factors and return the residual base weight W - scaling * B A, [O, I], in fp32."""
    weight_OI = start.weight_OI.to(torch.float32)
    q_OK, r_KI = torch.linalg.qr(weight_OI)
    start.lead(r_KI, q_OK)
    return start.residual()
