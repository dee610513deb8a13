"""Networks whose home is the computer's memory, on a device for their use alone: whole, or part by part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from .differentiable import CONTAINERS
from .folder import Network

ENCODING = ("encoder", "quant_conv")
"""Parts of diffusers' autoencoders that have no part in decoding."""


@contextmanager
def visiting(module: Network, device: torch.device) -> Iterator[Network]:
    """`module` is on `device` inside and goes home after: encoders hold no accelerator memory in training."""
    home = module.device
    module.to(device)
    try:
        yield module
    finally:
        module.to(home)


def decoding(vae: nn.Module) -> list[nn.Module]:
    """The parts of an autoencoder that decode; one at a time is at work."""
    found: list[nn.Module] = []

    def visit(parent: nn.Module) -> None:
        for child in parent.children():
            if isinstance(child, CONTAINERS):
                visit(child)
            else:
                found.append(child)

    for name, child in vae.named_children():
        if name == "decoder":
            visit(child)
        elif name not in ENCODING:
            found.append(child)
    return found


def weights_in(parts: Iterable[nn.Module]) -> list[Tensor]:
    """Their weights and buffers."""
    return list(chain.from_iterable((*part.parameters(), *part.buffers()) for part in parts))


@contextmanager
def fetched(parts: list[nn.Module], device: torch.device, on_paper: bool = False) -> Iterator[None]:
    """The weights of `parts` are on `device` inside, and after it where they were, as the very same tensors.

    Args:
        on_paper: under FakeTensorMode; only as much memory is taken.
    """
    weights = weights_in(parts)
    if on_paper:
        taken = [torch.empty_like(t, device=device) for t in weights if t.device.type != device.type]
        yield
        del taken
        return
    homes = [(t, t.data) for t in weights]
    try:
        for tensor, home in homes:
            tensor.data = home.to(device)
        yield
    finally:
        for tensor, home in homes:
            tensor.data = home


@contextmanager
def fetched_in_turn(parts: list[nn.Module], device: torch.device, on_paper: bool = False) -> Iterator[None]:
    """The weights of each of `parts` are on `device` while it computes: as little memory as its largest takes."""
    present: dict[nn.Module, AbstractContextManager[None]] = {}

    def enter(part: nn.Module, *_args: Any) -> None:
        present[part] = fetched([part], device, on_paper)
        present[part].__enter__()

    def leave(part: nn.Module, *_args: Any) -> None:
        present.pop(part).__exit__(None, None, None)

    with ExitStack() as hooks:
        for part in parts:
            hooks.callback(part.register_forward_pre_hook(enter).remove)
            hooks.callback(part.register_forward_hook(leave, always_call=True).remove)
        yield
