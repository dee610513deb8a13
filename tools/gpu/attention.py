"""PyTorch's attentions beside each other: is the gradient the same, and how long does it take?

Trainings keep from cuDNN's (`training.models.differentiable.sound_attention`); this says what that costs on a card.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

if TYPE_CHECKING:
    from gpu_check import Check

SIZES = (1536, 4608)
"""Tokens of Flux at 512 and 1024 px."""
NEAR = 0.01
TURNS = 10


def run(check: Check, _option: str) -> None:
    """FlashAttention and cuDNN's against the memory-efficient one, bfloat16, 24 heads of 128; at toy size others."""
    if check.toy:
        compare(check, "plain", SDPBackend.MATH, 64)
        return
    for tokens in SIZES:
        compare(check, "flash", SDPBackend.FLASH_ATTENTION, tokens)
        compare(check, "cudnn", SDPBackend.CUDNN_ATTENTION, tokens)


def compare(check: Check, name: str, backend: SDPBackend, tokens: int) -> None:
    """Tell by how much the gradients of queries, keys and values differ, and what a pass and its backward pass take."""
    torch.manual_seed(0)
    own = [
        torch.randn(1, tokens, 24, 128, device=check.device, dtype=torch.bfloat16).requires_grad_()
        for _ in range(3)
    ]
    usual = SDPBackend.FLASH_ATTENTION if check.toy else SDPBackend.EFFICIENT_ATTENTION
    with sdpa_kernel(usual):
        expected = gradients(own)
    with sdpa_kernel(backend):
        found = gradients(own)
        wait(check)
        begin = time.perf_counter()
        for _ in range(TURNS):
            gradients(own)
        wait(check)
        milliseconds = (time.perf_counter() - begin) / TURNS * 1e3
    far = [float((a - b).float().norm() / b.float().norm()) for a, b in zip(found, expected, strict=True)]
    check.tell(f"{name}, {tokens} tokens", max(far) < NEAR, milliseconds=milliseconds, relative=max(far))


def gradients(own: list[Tensor]) -> tuple[Tensor, ...]:
    """Of an output that depends on all of them, as networks lay them out: heads beside each other in a token."""
    query, key, value = (t.transpose(1, 2) for t in own)
    out = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    return torch.autograd.grad(out, own, 0.1 + out.detach())


def wait(check: Check) -> None:
    """Until the card has done what it was given."""
    if not check.toy:
        torch.cuda.synchronize()
