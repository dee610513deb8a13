"""An accelerator played by the CPU: it keeps apart what lies on it, and counts when the host has to wait for it.

Tensors stay ordinary ones of the CPU, so that whatever is computed is what the CPU computes; which of them lie "on
the device" is known by their storage. What PyTorch does with a real device holds here too: tensors of host and device
do not mix, a copy to the device waits unless it is ``non_blocking`` out of pinned memory, and reading a value waits.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.utils import clip_grad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("cuda")
ROOT = Path(__file__).resolve().parents[2]
READING = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "equal",
    "_unique2",
    "unique_dim",
    "repeat_interleave",
}
"""Operations whose result, or its size, the host must know."""
MIXING = {"copy_", "_to_copy", "index", "index_put", "index_put_", "_index_put_impl_"}
"""Operations that may take tensors of the host beside those of the device."""


class Accelerator:
    """What is on the device, what waited for it, and what of it is float64."""

    def __init__(self) -> None:
        self._there: weakref.WeakKeyDictionary[torch.UntypedStorage, bool]
        self._there = weakref.WeakKeyDictionary()
        self._pinned: weakref.WeakKeyDictionary[torch.UntypedStorage, bool]
        self._pinned = weakref.WeakKeyDictionary()
        self.waits: list[str] = []
        """What waited, and the function of the pack that it was for."""
        self.wide: list[str] = []
        """Operations that made a float64 tensor on the device."""

    def has(self, tensor: Any) -> bool:
        """Whether a tensor lies there."""
        return isinstance(tensor, Tensor) and tensor.untyped_storage() in self._there

    def put(self, tensor: Tensor, by: str = "made") -> Tensor:
        """Let a tensor lie there."""
        self._there[tensor.untyped_storage()] = True
        if tensor.dtype in (torch.float64, torch.complex128):
            self.wide.append(by)
        return tensor

    def pin(self, tensor: Tensor) -> Tensor:
        """A copy in pinned memory."""
        copy = tensor.clone()
        self._pinned[copy.untyped_storage()] = True
        return copy

    def is_pinned(self, tensor: Tensor) -> bool:
        """Whether it lies in pinned memory."""
        return tensor.untyped_storage() in self._pinned

    def waited(self, what: str) -> None:
        """Note that the host waits for the device."""
        frame = sys._getframe(1)
        while frame.f_back and not _of_the_pack(Path(frame.f_code.co_filename)):
            frame = frame.f_back
        self.waits.append(f"{what}: {frame.f_code.co_name}")

    def moved(self, tensor: Tensor, there: bool, dtype: torch.dtype | None, non_blocking: bool) -> Tensor:
        """A copy on the other side."""
        copy = tensor.detach().to(dtype or tensor.dtype, copy=True)
        if there:
            if not (non_blocking and self.is_pinned(tensor)):
                self.waited("copy to the device")
            return self.put(copy, "a copy to the device")
        self.waited("copy from the device")
        return copy

    @contextmanager
    def running(self) -> Iterator[Accelerator]:
        """The device exists inside."""
        grouped = clip_grad._group_tensors_by_device_and_dtype  # type: ignore[attr-defined]

        def grouped_there(lists: Any, *args: Any) -> Any:
            assert all(self.has(tensor) for tensor in lists[0])
            return {(DEVICE, dtype): own for (_, dtype), own in grouped(lists, *args).items()}

        parts = {
            "Event": _Event,
            "get_rng_state": lambda _device: torch.get_rng_state(),
            "set_rng_state": lambda _state, _device: None,
        }
        by_device = patch.object(clip_grad, "_group_tensors_by_device_and_dtype", grouped_there)
        with patch.multiple(torch.cuda, **parts), by_device, _Operations(self), _Calls(self):
            yield self


class _Event:
    def __init__(self, **_: Any) -> None:
        pass

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, _: Any) -> float:
        return 1.0


class _Operations(TorchDispatchMode):
    """What PyTorch computes, the backward pass too."""

    def __init__(self, device: Accelerator) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        there = [t for t in tensors if self.device.has(t)]
        if not there:
            return func(*args, **kwargs)
        here = [t for t in tensors if not self.device.has(t) and t.ndim]
        if here and name not in MIXING:
            raise RuntimeError(
                f"{name} got tensors of the device and of the host: {[tuple(t.shape) for t in here]}"
            )
        if name in READING:
            self.device.waited(name)
        if name.startswith(("index", "_index")) and name in MIXING:
            indices = [t for t in tree_leaves(args[1]) if isinstance(t, Tensor)]
            if here or any(t.dtype in (torch.bool, torch.uint8) for t in indices):
                self.device.waited(name)
        if name == "copy_" and here:
            self.device.waited(name)
        out = func(*args, **kwargs)
        if name == "copy_":
            return out
        for made in tree_leaves(out):
            if isinstance(made, Tensor):
                self.device.put(made, name)
        return out


class _Calls(TorchFunctionMode):
    """What Python code says to tensors about devices."""

    def __init__(self, device: Accelerator) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device, name = self.device, getattr(func, "__name__", "")
        if func == Tensor.device.__get__:  # type: ignore[attr-defined]
            return DEVICE if device.has(args[0]) else func(*args)
        if func == Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return device.has(args[0])
        if func is Tensor.pin_memory:
            return device.pin(args[0])
        if func in (Tensor.cpu, Tensor.tolist, Tensor.numpy) and device.has(args[0]):
            own = device.moved(args[0], False, None, False)
            return own if func is Tensor.cpu else func(own)
        if func is Tensor.to:
            return self._to(*args, **kwargs)
        if _of_device(kwargs.get("device")) or (name == "new_tensor" and device.has(args[0])):
            if name in ("tensor", "as_tensor", "new_tensor"):  # made on the host, then copied
                device.waited(name)
            return device.put(func(*args, **kwargs | {"device": "cpu"}), name)
        return func(*args, **kwargs)

    def _to(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        device = self.device
        if args and isinstance(args[0], Tensor):
            there: bool | None = device.has(args[0])
            dtype, non_blocking = args[0].dtype, kwargs.get("non_blocking", False)
        else:
            place, dtype, non_blocking, _ = torch._C._nn._parse_to(
                *args, **{k: v for k, v in kwargs.items() if k != "copy"}
            )
            there = None if place is None else _of_device(place)
        if there is None or there == device.has(tensor):
            wanted = tensor.dtype if dtype is None else dtype
            return tensor.to(wanted, copy=kwargs.get("copy", False))
        return device.moved(tensor, there, dtype, non_blocking)


def _of_device(place: Any) -> bool:
    return place is not None and not isinstance(place, int) and torch.device(place).type == DEVICE.type


def _of_the_pack(path: Path) -> bool:
    return path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in ("training", "samplers", "host")
