"""How much memory a computation needs, without doing it: shapes in place of numbers, and an account of storages.

Under PyTorch's FakeTensorMode every operation runs on shapes alone, autograd and recomputation included; a `Ledger`
adds up the storages that are alive. Against a real run of the same code the account is the same to the byte. What the
allocator, the libraries' workspaces and the device's context take on top is not in it.
"""

from __future__ import annotations

import functools
import itertools
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from types import CellType, FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from ..models.swap import in_backward

if TYPE_CHECKING:
    from .alike import Graph, Row, Stretch


def _attention_flops(query: Tensor, key: Tensor, value: Tensor, *_rest: Any, **_options: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))


def _attention_backward_flops(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_rest: Any, **_options: Any
) -> int:
    return int(sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape))


FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    torch.ops.aten.addmm_: flop_registry[torch.ops.aten.addmm],
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}
"""Floating-point operations by operator. PyTorch's table lacks products that add in place, and
attention on a processor, on which plans are made."""


EMPTY = CellType()


class Tally(NamedTuple):
    """An account at some moment, bytes and numbers of operations."""

    live: int = 0
    flops: int = 0
    fetched: int = 0
    operations: int = 0


class Ledger(TorchDispatchMode):
    """The bytes of the storages that operations inside make and that are still alive; `peak` is the highest.

    Storages on another kind of device than `device` are not counted, nor those of tensors given to `leave_out`.
    """

    def __init__(self, device: torch.device | str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self.flops = 0
        """Of matrix products, convolutions and attention."""
        self.fetched = 0
        """Bytes that are kept elsewhere, see `elsewhere`."""
        self.operations = 0
        self.rows: list[Row] = []
        """Blocks of which some are missing, see `alike`."""
        self.added = 0
        """Bytes in `live` of what is missing."""
        self._high = 0  # since the last mark
        self._kind = torch.device(device).type
        self.left_out: set[int] = set()
        self._bytes: dict[int, int] = {}
        self._ends: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._born: dict[int, int] = {}
        self._numbers = itertools.count(1)
        self._multiplied: dict[int, set[int]] = {}
        self._witnesses: dict[int, Graph] = {}

    def leave_out(self, tensors: Iterable[Tensor]) -> None:
        """Do not count the storages of these, which must live as long as the ledger is used."""
        for tensor in tensors:
            self.left_out.add(tensor.untyped_storage()._cdata)

    def put_in(self, tensors: Iterable[Tensor]) -> None:
        """Count the storages of these, wherever they were made."""
        for tensor in tensors:
            self._enter(tensor.untyped_storage())

    def restart(self) -> None:
        """Forget the peak so far, and the operations."""
        self.peak, self.flops = self.live, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation and enter what it made."""
        if func is torch.ops.prim.device.default and type(args[0]) is FakeTensor:
            return args[0].fake_device  # asked for more often than all else, and slow to be dispatched
        out = answered(func, args, kwargs or {})
        self.operations += 1
        if (counted := FLOPS.get(func._overloadpacket)) is not None:
            self.flops += counted(*args, **(kwargs or {}), out_val=out)
        for value in (out,) if isinstance(out, Tensor) else tree_iter(out):
            if isinstance(value, Tensor) and kind_of(value) == self._kind:
                self._enter(value.untyped_storage())
        return out

    def _enter(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._bytes or key in self.left_out:
            return
        self._bytes[key] = size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        self._high = max(self._high, self.live)
        self._ends[key] = weakref.ref(storage, functools.partial(self._drop, key))
        self._born[key] = self.operations

    def _drop(self, key: int, _storage: Any = None) -> None:
        self.live -= self._bytes.pop(key, 0)
        self._ends.pop(key, None)
        self._born.pop(key, None)
        self._multiplied.pop(key, None)
        graph = self._witnesses.pop(key, None)
        if graph is not None:
            graph.left.discard(key)
            if not graph.left and not graph.settled and not in_backward():  # which frees it block by block
                self.live -= graph.size
                self.added -= graph.size
                self.fetched -= graph.fetched
                graph.settled = True

    def elsewhere(self, tensor: Tensor) -> Callable[[], Tensor]:
        """As if a tensor were kept in another memory for as long as it may be asked for: of shapes, it is made anew."""
        size, stride, dtype, device = tensor.size(), tensor.stride(), tensor.dtype, tensor.device
        self.fetched += tensor.nbytes

        def fetch() -> Tensor:
            return torch.empty_strided(size, stride, dtype=dtype, device=device)

        key = -next(self._numbers)  # no storage's; a graph whose tensors are all elsewhere is alive by it
        self._born[key], self._bytes[key] = self.operations, 0
        weakref.finalize(fetch, self._fetch_no_more, key, tensor.nbytes)
        return fetch

    def _fetch_no_more(self, key: int, size: int) -> None:
        self.fetched -= size
        self._drop(key)

    def tally(self) -> Tally:
        """The account as it is."""
        return Tally(self.live, self.flops, self.fetched, self.operations)

    def mark(self) -> None:
        """A moment between which and the next one the highest is of interest to `rows`."""
        for row in self.rows:
            row.high = max(row.high, self._high)
        self._high = self.live

    def repeat(self, stretch: Stretch, times: int) -> None:
        """What happened between two moments happens so many times more."""
        self._high = self.live + max(0, stretch.live * (times - 1)) + stretch.high
        self.peak = max(self.peak, self._high)
        self.live += stretch.live * times
        self.added += stretch.live * times
        self.flops += stretch.flops * times
        self.fetched += stretch.fetched * times
        self.operations += stretch.operations * times
        self.mark()

    def keep_with(self, graph: Graph) -> None:
        """What was added for a backward pass goes unused where all goes that is here of the block that stood for it."""
        graph.left = {key for key, born in self._born.items() if graph.since < born <= graph.until}
        self._witnesses.update(dict.fromkeys(graph.left, graph))

    def multiply(self, keys: Iterable[int], times: int, row: Row) -> None:
        """Some of what was added lives as long as these storages: so many of each, for the blocks of `row`."""
        for key in keys:
            known = self._multiplied.setdefault(key, set())
            if key in self._bytes and id(row) not in known:
                known.add(id(row))
                self.added -= self._bytes[key] * (times - 1)
                self._bytes[key] *= times


def kind_of(tensor: Tensor) -> str:
    """The kind of device that a tensor is on."""
    device: torch.device = tensor.fake_device if type(tensor) is FakeTensor else tensor.device
    return device.type


def answered(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The operation's result; where code asks for the value of a number that has only a shape, the answer is 1.

    Shapes are not pinned for a GPU to fetch.
    """
    if func is torch.ops.aten._pin_memory.default and on_paper():
        return args[0]
    if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
        try:
            return func(*args, **kwargs)  # of a constant, the value is known
        except RuntimeError:
            dtype = args[0].dtype
            return True if dtype == torch.bool else 1.0 if dtype.is_floating_point else 1
    return func(*args, **kwargs)


def on_paper() -> bool:
    """Whether operations run on shapes here."""
    return any(isinstance(mode, FakeTensorMode) for mode in _get_current_dispatch_mode_stack())


def fake_mode(weights: Iterable[Tensor]) -> tuple[FakeTensorMode, bool]:
    """The mode that the weights were made under, and True; for real ones a new mode, and False."""
    for weight in weights:
        if isinstance(weight.data, FakeTensor):
            return weight.data.fake_mode, True
    return FakeTensorMode(allow_non_fake_inputs=True), False


@contextmanager
def accounted(module: nn.Module, device: torch.device | str, real: bool = False) -> Iterator[Ledger]:
    """Operations inside run on shapes, and the ledger holds what they make; the module's own weights are left out.

    Args:
        module: a network with real weights, which are neither read nor copied, or one made under FakeTensorMode.
        real: compute in earnest, to compare.
    """
    mode, made_fake = fake_mode(module.parameters())
    ledger = Ledger(device)
    with undisturbed(module), torch.random.fork_rng(devices=[]), nullcontext() if real else mode:
        own = [t for t in (*module.parameters(), *module.buffers()) if t is not None]
        held = own if real or made_fake else [moved(mode, t, device) for t in own]
        ledger.leave_out(held)
        with ledger:
            yield ledger
        del held


def shape_of(mode: FakeTensorMode, tensor: Tensor) -> Tensor:
    """A real tensor as the mode will see it."""
    return mode.from_tensor(tensor, static_shapes=True)


def moved(mode: FakeTensorMode, tensor: Tensor, device: torch.device | str) -> Tensor:
    """The same, as if it were on `device`: what lies elsewhere until it is used is there when it is used."""
    shape = shape_of(mode, tensor)
    if isinstance(shape, FakeTensor) and shape.fake_device.type != torch.device(device).type:
        with mode:  # a device without its number counts as another than that of what is made there
            shape.fake_device = torch.empty(0, device=device).device
    return shape


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """What the module keeps between calls (tables of positions above all) is afterwards what it was before.

    A table that was made of shapes would be met by the next real call.
    """
    kept = [(part, {k: snapshot(v) for k, v in vars(part).items()}) for part in module.modules()]
    try:
        yield
    finally:
        for part, attributes in kept:
            for name in vars(part).keys() - attributes.keys():
                del part.__dict__[name]
            for name, back in attributes.items():
                part.__dict__[name] = back()
        for cached in caches(module):
            cached.cache_clear()


def snapshot(value: Any) -> Callable[[], Any]:
    """A function that returns `value` as it is now; a dict or a list keeps its identity and gets its items back."""
    if isinstance(value, dict):
        items = dict(value)

        def back() -> Any:
            if list(value) != list(items) or any(value[k] is not items[k] for k in items):
                value.clear()
                value.update(items)
            return value

        return back
    if type(value) is list:
        members = list(value)

        def back_list() -> Any:
            value[:] = members
            return value

        return back_list
    return lambda: value


def caches(module: nn.Module) -> list[Any]:
    """Results that functions of the network's code keep (``functools.lru_cache``); to forget them is harmless."""
    classes = {cls for part in module.modules() for cls in type(part).__mro__}
    own = {cls for cls in classes if not cls.__module__.startswith("torch")}
    places: list[Any] = [
        *own,
        *(sys.modules[name] for name in {cls.__module__ for cls in own} & sys.modules.keys()),
    ]
    found = [value for place in places for value in list(vars(place).values())]
    found += [value for function in found for value in inside(function)]
    return [value for value in found if isinstance(value, functools._lru_cache_wrapper)]


def inside(function: Any) -> list[Any]:
    """What a function has from where it was made: a wrapper the cache that it looks into."""
    if not isinstance(function, FunctionType):
        return []
    cells = (cell for cell in function.__closure__ or () if cell != EMPTY)
    return [cell.cell_contents for cell in cells]
