"""Of many equal blocks four are run, and stand for all: the plan of a large network in the time of a small one.

Where a list of a network holds a row of blocks of one structure, the middle ones do the same to the account of memory,
one after the other. Inside `shortened` the first, two of the middle and the last are left; where the account between
the two is seen to be equal, forwards and backwards, the ledger adds what the missing ones do. So the highest moment is
found wherever it lies, to the byte. Where anything is other than that, `UnevenError` is raised, and nothing is known.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .ledger import Ledger, Tally

KEPT = 4
"""Blocks that are run of a row: the first, whose input may need no gradient, two to compare, and the last."""
FORWARDS, BACKWARDS = [0, 1, 2], [3, 2, 1]
"""The places that were passed when the missing blocks would follow: they lie between the third and the last, and are
added before the first on the way back, as good a place among equals."""
SIMPLE = (bool, int, float, complex, str, torch.dtype, torch.device, type(None))


class UnevenError(RuntimeError):
    """Blocks that look alike do not do the same."""


@dataclass
class Row:
    """Blocks of one structure that follow each other; of `missing` more there is no block.

    `passed` hears of each block as a pass reaches it.
    """

    blocks: list[nn.Module]
    missing: int
    ledger: Ledger | None = None
    at: int | None = None
    """The place that was reached last."""
    begun: Tally = Tally()
    """The account there."""
    high: int = 0
    """The highest since."""
    path: tuple[tuple[int, Stretch], ...] = ()
    """The last places before it, and what happened between each and the next."""
    graphs: list[Graph] = field(default_factory=list)
    """Of passes forwards, for which none has come back yet."""
    forwards: int = 0
    backwards: int = 0
    """How often the missing blocks were added."""
    differentiable: bool = False
    """Whether a backward pass must come by."""

    def follow(self, ledger: Ledger) -> None:
        """Begin a new account."""
        self.ledger, self.at, self.path, self.graphs = ledger, None, (), []
        self.forwards, self.backwards, self.differentiable = 0, 0, False
        ledger.rows.append(self)

    def passed(self, place: int) -> None:
        """A pass has reached the block at `place`: forwards its call, backwards the gradient of its output."""
        if (
            self.ledger is None or place == self.at
        ):  # the last one's forward and backward pass are one stretch
            return
        self.ledger.mark()
        now = self.ledger.tally()
        if self.at is not None:
            if abs(place - self.at) != 1 and {place, self.at} != {0, KEPT - 1}:
                raise UnevenError(f"block {place} follows block {self.at}")
            begun = self.begun
            stretch = Stretch(*(b - a for a, b in zip(begun, now, strict=True)), self.high - begun.live)  # type: ignore[call-arg]
            self.path = (*self.path[-2:], (self.at, stretch))
            if (self.at, place) == (2, 3):
                self._add(FORWARDS)
                self.forwards += 1
            elif (self.at, place) == (1, 0):
                self._add(BACKWARDS)
                self.backwards += 1
        elif place != 0:
            raise UnevenError(f"block {place} comes first")
        self.at, self.begun = place, self.ledger.tally()
        self.high = self.begun.live

    def _add(self, way: list[int]) -> None:
        """The missing blocks do what the last two did."""
        assert self.ledger is not None
        if [place for place, _ in self.path] != way:
            raise UnevenError(f"blocks are passed in the order {[place for place, _ in self.path]}")
        one, other = (stretch for _, stretch in self.path[-2:])
        if one != other:
            raise UnevenError(f"a block does {other}, the one before it {one}")
        now = self.ledger.operations
        self.ledger.repeat(other, self.missing)
        if way is FORWARDS:
            graph = Graph(self.begun.operations, now, other.live * self.missing, other.fetched * self.missing)
            self.graphs = [*(g for g in self.graphs if not g.settled), graph]
            self.ledger.keep_with(graph)
            return
        # Gradients live on until they are dropped, and some that hangs on a graph as long as that: with this one's.
        left = [p.grad.untyped_storage()._cdata for p in self.blocks[1].parameters() if p.grad is not None]
        graphs = [g for g in self.graphs if not g.settled]
        if graphs:
            graphs[-1].settled = True
            left += graphs[-1].left
        self.ledger.multiply(left, 1 + self.missing, self)

    def check(self) -> None:
        """All passes went along the whole row.

        Raises:
            UnevenError: they did not.
        """
        whole = self.at in (0, KEPT - 1) and self.forwards > 0
        if not whole or self.differentiable != (self.backwards > 0):
            raise UnevenError(f"{self.forwards} passes forwards and {self.backwards} backwards, at {self.at}")


class Stretch(NamedTuple):
    """What happened between two moments."""

    live: int
    """Bytes that there are more after it."""
    flops: int
    fetched: int
    operations: int
    high: int
    """The highest in it above its beginning."""


@dataclass
class Graph:
    """What a pass forwards added for one that comes back."""

    since: int
    until: int
    """Operations between which the last block that is there made what stands for it."""
    size: int
    """Bytes."""
    fetched: int
    """Bytes that are kept elsewhere."""
    settled: bool = False
    """One came back, or none will."""
    left: set[int] = field(default_factory=set)
    """Storages of that block that are alive."""


class Rows:
    """The rows of a network that was shortened."""

    def __init__(self, rows: Sequence[Row] = ()) -> None:
        self.rows = rows

    def follow(self, ledger: Ledger) -> None:
        """Let the ledger add what the missing blocks do."""
        for row in self.rows:
            row.follow(ledger)

    def all_of(self, parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
        """Parameters, with one of each missing block's own: again and again the same."""
        times = {id(p): 1 for p in parameters}
        for row in self.rows:
            for p in row.blocks[1].parameters():
                if id(p) in times:
                    times[id(p)] *= 1 + row.missing
        return [p for p in parameters for _ in range(times[id(p)])]

    def check(self, ledger: Ledger) -> None:
        """What was added is gone again, and every pass went along the rows.

        Raises:
            UnevenError: not so.
        """
        for row in self.rows:
            row.check()
        if ledger.added:
            raise UnevenError(f"{ledger.added} bytes of blocks that are missing remain")


@contextmanager
def shortened(module: nn.Module, chosen: Callable[[nn.Module], Collection[str]]) -> Iterator[Rows]:
    """Inside, of each row of blocks that are alike four are left.

    Args:
        chosen: names of the layers of a network that get adapters: blocks with others are not alike.

    Raises:
        UnevenError: which layers get adapters depends on which blocks there are.
    """
    adapted = {id(module.get_submodule(name)) for name in chosen(module)}
    rows: list[Row] = []
    with ExitStack() as undo:
        for parent in lists_in(module):
            rows += cut(parent, adapted, undo)
        there = {id(m) for m in module.modules()}
        if rows and {id(module.get_submodule(name)) for name in chosen(module)} != adapted & there:
            raise UnevenError("other layers get adapters where blocks are missing")
        for row in rows:
            for place, block in enumerate(row.blocks):
                watch(row, place, block, undo)
        yield Rows(rows)


def lists_in(module: nn.Module) -> Iterator[nn.ModuleList]:
    """Lists of modules, outer ones first; one that is shortened meanwhile is not looked into where it was."""
    for child in list(module.children()):
        if isinstance(child, nn.ModuleList):
            yield child
        yield from lists_in(child)


def cut(parent: nn.ModuleList, adapted: set[int], undo: ExitStack) -> list[Row]:
    """Take the middle ones of each row of a list out, until `undo`."""
    rows, left = [], []
    for _, group in groupby(parent, lambda block: structure(block, adapted)):
        blocks = list(group)
        if len(blocks) > KEPT:
            row = Row([*blocks[: KEPT - 1], blocks[-1]], len(blocks) - KEPT)
            rows.append(row)
            blocks = row.blocks
        left += blocks
    if rows:
        undo.callback(replaced, parent, list(parent))
        replaced(parent, left)
    return rows


def replaced(parent: nn.ModuleList, blocks: list[nn.Module]) -> None:
    """The list holds these instead."""
    parent._modules.clear()
    parent._modules.update({str(i): block for i, block in enumerate(blocks)})


def structure(block: nn.Module, adapted: set[int]) -> tuple[Any, ...]:
    """What makes a block do what it does to memory: classes, settings, sizes and kinds of weights, adapters."""
    return tuple(
        (name, type(part), id(part) in adapted, settings(part), tuple(map(form, weights(part))))
        for name, part in block.named_modules()
    )


def weights(part: nn.Module) -> list[tuple[str, Tensor | None]]:
    """A module's own weights and buffers."""
    return [*part._parameters.items(), *part._buffers.items()]


def form(named: tuple[str, Tensor | None]) -> tuple[Any, ...]:
    """All of a weight but its values."""
    name, weight = named
    if weight is None:
        return name, None
    return (
        name,
        type(weight),
        weight.shape,
        weight.stride(),
        weight.dtype,
        weight.device,
        weight.requires_grad,
    )


def settings(part: nn.Module) -> tuple[Any, ...]:
    """A module's attributes: simple ones with their values, others by their kind, private numbers left out."""
    hooks = (len(part._forward_hooks), len(part._forward_pre_hooks))
    found: list[tuple[Any, ...]] = []
    for name, value in sorted(vars(part).items()):
        if name.startswith("_"):
            continue
        if isinstance(value, SIMPLE) or (
            isinstance(value, tuple) and all(isinstance(v, SIMPLE) for v in value)
        ):
            found.append((name, value))
        else:
            found.append((name, type(value), len(value) if isinstance(value, (list, dict)) else None))
    return (hooks, *found)


def watch(row: Row, place: int, block: nn.Module, undo: ExitStack) -> None:
    """Tell the row when a pass reaches the block."""

    def entered(_block: nn.Module, _args: Any) -> None:
        row.passed(place)

    def left(_block: nn.Module, _args: Any, output: Any) -> None:
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                row.differentiable = True
                # At the first of them nothing of the block has gone back yet.
                tensor.register_hook(lambda _grad: row.passed(place))

    undo.callback(block.register_forward_pre_hook(entered).remove)
    undo.callback(block.register_forward_hook(left).remove)
