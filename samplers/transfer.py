"""Tensors sent to where they are computed with."""

from __future__ import annotations

import torch
from torch import Tensor

QUEUED = ("cuda",)
"""Kinds of devices that take copies in turn with their work, out of pinned memory."""


def sent(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """`tensor` on `device`, as `dtype`, without waiting for a GPU.

    What is drawn, and what noise levels decide, is made on the CPU. A plain copy from there lets the host wait until
    the device has done everything it was told before. Types change before the copy: not every device has float64.
    """
    if device.type not in QUEUED or tensor.device.type != "cpu":
        return tensor.to(dtype or tensor.dtype).to(device)
    return tensor.to(dtype or tensor.dtype).pin_memory().to(device, non_blocking=True)
