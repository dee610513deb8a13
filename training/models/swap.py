"""Blocks whose weights lie in the computer's memory and are fetched for each use.

On a GPU the next block is fetched by a stream of its own while one computes, forwards in a forward pass and backwards
in a backward pass. A block's weights live while it computes; in a backward pass that asks for gradient checkpointing,
which computes the block again: without it autograd would keep the weights of all blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from .differentiable import blocks


class Swap:
    """The blocks of a network, their weights at home in the computer's memory. `detach` brings all back.

    Adapters that are put on later are not the swap's: they stay where they are.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self.device = device
        self.active = True
        self.blocks = blocks(network)
        self.homes = [homes_in(block) for block in self.blocks]
        self.fetched: dict[int, tuple[list[Tensor], Any]] = {}
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        inside = {id(home.tensor) for homes in self.homes for home in homes}
        for t in (*network.parameters(), *network.buffers()):
            t.data = at_home(t) if id(t) in inside else t.data.to(device)
        self.hooks = []
        for i, block in enumerate(self.blocks):
            self.hooks += [
                block.register_forward_pre_hook(lambda _block, _args, i=i: self.enter(i)),
                # Also where recomputation stops a block half-way, by an exception.
                block.register_forward_hook(lambda _block, _args, _out, i=i: self.leave(i), always_call=True),
            ]

    def enter(self, i: int) -> None:
        """The weights of block `i` are on the device; those of the next one are on their way."""
        if not self.active:
            return
        copies, event = self.fetched.pop(i, None) or (self.copies(i), None)
        if event is not None:
            torch.cuda.current_stream(self.device).wait_event(event)
        for home, copy in zip(self.homes[i], copies, strict=True):
            if self.stream is not None:
                copy.record_stream(torch.cuda.current_stream(self.device))
            home.members[home.name] = copy
        self.prefetch(i - 1 if in_backward() else i + 1)

    def leave(self, i: int) -> None:
        """The weights of block `i` are at home."""
        for home in self.homes[i]:
            home.members[home.name] = home.tensor

    def prefetch(self, i: int) -> None:
        """Begin to fetch block `i`, where there is a stream to do so beside the computation."""
        if self.stream is None or not 0 <= i < len(self.blocks) or i in self.fetched:
            return
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            copies = self.copies(i)
            event = torch.cuda.Event()
            event.record(self.stream)
        self.fetched = {i: (copies, event)}  # one that was fetched in vain is let go

    def copies(self, i: int) -> list[Tensor]:
        """The weights of block `i` on the device, as tensors of their own.

        What autograd keeps of a weight is the tensor itself: one whose memory changed between its home and the device
        would be at home again in the backward pass.
        """
        copies = [
            home.tensor.detach().to(self.device, non_blocking=True, copy=True) for home in self.homes[i]
        ]
        return [
            nn.Parameter(copy, requires_grad=False) if isinstance(home.tensor, nn.Parameter) else copy
            for home, copy in zip(self.homes[i], copies, strict=True)
        ]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, blocks compute with their weights where they are."""
        before, self.active = self.active, False
        try:
            yield
        finally:
            self.active = before

    def detach(self) -> None:
        """Stop; all weights are on the device."""
        for hook in self.hooks:
            hook.remove()
        self.fetched = {}
        for homes in self.homes:
            for home in homes:
                home.tensor.data = home.tensor.data.to(self.device)


@dataclass(frozen=True)
class Home:
    """A weight in the computer's memory, and where its module has it."""

    members: dict[str, Tensor]
    name: str
    tensor: Tensor


def homes_in(block: nn.Module) -> list[Home]:
    """The weights and tables of a block."""
    places = [cast(dict[str, Tensor], own) for m in block.modules() for own in (m._parameters, m._buffers)]
    return [Home(own, name, t) for own in places for name, t in own.items() if t is not None]


def at_home(tensor: Tensor) -> Tensor:
    """A tensor's values in the computer's memory; pinned where there is a GPU to fetch them."""
    home = tensor.detach().to("cpu")
    return home.pin_memory() if torch.cuda.is_available() else home


def in_backward() -> bool:
    """Whether autograd is at work: a forward pass now is one that checkpointing repeats."""
    return torch._C._current_graph_task_id() != -1


def can_swap(network: nn.Module) -> bool:
    """Whether what its checkpointing repeats are its blocks: so in transformers, not in UNets."""
    return hasattr(network, "enable_gradient_checkpointing") and not hasattr(network, "down_blocks")
