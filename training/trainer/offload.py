"""What the forward pass keeps for the backward pass, kept in the computer's memory in between."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

SMALL = 1 << 18
"""Bytes below which a tensor stays where it is: fetching it takes longer than it is worth."""

Fetch = Callable[[], Tensor]
"""Give a tensor back, on the device that it came from."""


def in_main_memory(tensor: Tensor) -> Fetch:
    """Copy a tensor to the computer's memory, pinned where it comes from a GPU: neither way makes the host wait."""
    device = tensor.device
    if device.type == "cpu":
        return lambda: tensor
    kept = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=device.type == "cuda")
    kept.copy_(tensor, non_blocking=True)
    return lambda: kept.to(device, non_blocking=True)


@contextmanager
def kept_elsewhere(
    weights: Collection[int], keep: Callable[[Tensor], Fetch] = in_main_memory
) -> Iterator[None]:
    """Tensors that a forward pass inside saves for its backward pass are kept by `keep`, each once.

    Args:
        weights: storages (by ``_cdata``) of what stays on the device in any case, the network's weights.
    """
    # By storage, which is forgotten with it: the next one may get the same address.
    known: weakref.WeakKeyDictionary[torch.UntypedStorage, dict[object, weakref.ref[_Kept]]]
    known = weakref.WeakKeyDictionary()

    def pack(tensor: Tensor) -> Tensor | _Kept:
        storage = tensor.untyped_storage()
        if tensor.nbytes < SMALL or storage._cdata in weights:
            return tensor
        views = known.setdefault(storage, {})
        view = (tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype, tensor._version)
        found = views[view]() if view in views else None
        if found is None:
            found = _Kept(keep(tensor))
            views[view] = weakref.ref(found)
        return found

    def unpack(kept: Tensor | _Kept) -> Tensor:
        return kept.fetch() if isinstance(kept, _Kept) else kept

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


class _Kept:
    """A tensor that is kept elsewhere."""

    def __init__(self, fetch: Fetch) -> None:
        self.fetch = fetch


def storages(tensors: Collection[Tensor]) -> set[int]:
    """The storages of tensors, as `kept_elsewhere` knows them; of wrapped ones (quantised weights) nothing is known."""
    plain = [t for t in tensors if type(t) in (Tensor, torch.nn.Parameter)]
    return {t.untyped_storage()._cdata for t in plain}
