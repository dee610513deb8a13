"""The repeated blocks of a network, compiled by torch.compile while it trains.

Blocks and not the whole network: those of one kind share what was compiled, so that compiling takes as long as a few
blocks, and what stands around them (embeddings, conditioning of any kind) stays as it is. Batches and pictures of any
size run through the same code, as rollouts need: their batch gets smaller from step to step.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.fx.experimental._config
from torch import Tensor, nn

from ...messages import one_line
from .differentiable import blocks

logger = logging.getLogger(__name__)

VARIANTS = 64
"""Most times that a kind of block is compiled: with and without gradient, its adapter on and off, a batch of one."""


class Regions:
    """The blocks of a network: inside `attached` they compute with compiled code, once `begin` has compiled them.

    A block whose code cannot be compiled is no reason to lose a night: one line in the log, and all go on without.

    Args:
        network: as it is before adapters are put on it.
        backend: of torch.compile.
    """

    def __init__(self, network: nn.Module, backend: str | Callable[..., Any] = "inductor") -> None:
        self.name = type(network).__name__
        self.blocks = [block for block in blocks(network) if "forward" not in vars(block)]
        self.backend = backend
        self.active = False
        self.told = ""
        """What became of it, in words; empty before `begin`."""

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The blocks compute with what was compiled, inside; after, also after an error, they are as they were."""
        kinds = {kind: self.compiled(kind) for kind in {type(block) for block in self.blocks}}
        with ExitStack() as stack:
            stack.enter_context(torch._dynamo.config.patch(cache_size_limit=VARIANTS))
            # Sizes that happen to agree, as of a batch of 8 and 8 tokens, may part later.
            config: Any = torch.fx.experimental._config
            stack.enter_context(config.patch(use_duck_shape=False))
            for block in self.blocks:
                block.forward = self.switched(block, kinds[type(block)])
                stack.callback(vars(block).pop, "forward", None)
            stack.callback(setattr, self, "active", False)
            yield

    def compiled(self, kind: type[nn.Module]) -> Callable[..., Any]:
        """The forward pass of a class of blocks, `(block, *args, **kwargs) -> output`, compiled when it is called."""
        plain = kind.forward

        def region(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return plain(block, *args, **kwargs)

        # What is compiled is kept, and its number limited, by code object: one of our own is let go after the training
        # and leaves a host that compiles the same class alone.
        region.__code__ = region.__code__.replace(co_name=f"region_of_{kind.__name__}")
        # Where the backward pass computes a block again, it does so on a thread that the patched limit does not reach.
        limit = {"recompile_limit": VARIANTS}
        known = inspect.signature(torch.compile).parameters
        options: dict[str, Any] = {name: value for name, value in limit.items() if name in known}
        return torch.compile(region, dynamic=True, backend=self.backend, **options)

    def switched(self, block: nn.Module, fast: Callable[..., Any]) -> Callable[..., Any]:
        """The forward pass of a block: `fast` while the regions are active."""
        plain = block.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if not self.active:
                return plain(*args, **kwargs)
            given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            versions = [tensor._version for tensor in given]
            try:
                return fast(block, *args, **kwargs)
            except torch._dynamo.exc.TorchDynamoException as err:
                if versions != [tensor._version for tensor in given]:
                    raise  # half of it was computed, into its own inputs
                self.give_up(err)
                return plain(*args, **kwargs)

        return forward

    def begin(self, runs: Sequence[Callable[[], object]]) -> str:
        """Compile by computing all of `runs`, as many passes as the training has kinds; what became of it.

        Each is computed without compiled code first: where a model must be looked at before it trains, that is then.
        """
        if self.told or not self.blocks:
            self.told = self.told or f"nothing to compile: {self.name} has no repeated blocks"
            return self.told
        for run in runs:
            run()
        began = time.monotonic()
        self.active = True
        try:
            for run in runs:
                run()
        except Exception as err:  # backends raise what they like: a missing compiler, a bug
            self.give_up(err)
        if self.active:
            seconds = time.monotonic() - began
            self.told = f"{len(self.blocks)} blocks of {self.name} compiled in {seconds:.0f} s"
            logger.info("%s", self.told)
        return self.told

    def give_up(self, err: Exception) -> None:
        """Go on without compiled code, and say why."""
        if self.active:
            self.active = False
            reason = f"{type(err).__name__}: {err}"
            self.told = (
                f"trains without compile: the blocks of {self.name} cannot be compiled, {one_line(reason)}"
            )
            logger.warning("%s", self.told)
