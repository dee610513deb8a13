"""What a network of ComfyUI needs to be trained through; all of it is undone after."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from comfy import model_management
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor, nn


def tensors_in(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors and numbers in a patch, wherever they are in it."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, (int, float)):
        yield name, torch.tensor(float(value))
    elif isinstance(value, (tuple, list)):
        for i, item in enumerate(value):
            yield from tensors_in(item, f"{name}.{i}")
    elif hasattr(value, "weights"):  # a weight adapter
        yield from tensors_in(value.weights, name)


def differentiable_attention(_function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """PyTorch's attention in place of the one that the host has chosen."""
    return cast(Tensor, attention_pytorch(*args, **kwargs))


@contextmanager
def in_training() -> Iterator[None]:
    """Tell the host, where it can be told, that gradients are taken."""
    if not hasattr(model_management, "in_training"):
        yield
        return
    before = model_management.in_training
    model_management.in_training = True
    try:
        yield
    finally:
        model_management.in_training = before


@contextmanager
def as_normal_tensors(module: nn.Module) -> Iterator[None]:
    """Inside, weights that are inference tensors are usual tensors on the same memory; after, they are the old ones.

    The host loads models under inference mode; autograd cannot keep what was made there, nor may it be told whether it
    is trained.
    """
    replaced: list[tuple[dict[str, Any], str, Tensor]] = []
    for part in module.modules():
        for members in (part._parameters, part._buffers):
            kept = cast(dict[str, Any], members)
            replaced += [(kept, name, t) for name, t in kept.items() if is_plain(t) and t.is_inference()]
    try:
        with torch.inference_mode(False), torch.no_grad():
            for kept, name, tensor in replaced:
                kept[name] = normal(tensor)
        yield
    finally:
        for kept, name, tensor in replaced:
            kept[name] = tensor


def is_plain(tensor: Any) -> bool:
    """Whether it is a tensor without a layout of its own, as those of quantised weights."""
    return type(tensor) in (Tensor, nn.Parameter)


def normal(tensor: Tensor) -> Tensor:
    """A usual tensor on the memory of an inference tensor."""
    own = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    own.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())
    return nn.Parameter(own, requires_grad=False) if isinstance(tensor, nn.Parameter) else own


class Recast(torch.autograd.Function):
    """A frozen linear layer whose weight is cast or fetched anew for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Callable[[Tensor], Tensor]) -> Tensor:
        """``layer(x)``, keeping nothing of its weight."""
        kind = x.device.type
        ctx.save_for_backward(x)
        ctx.layer = layer
        ctx.autocast = kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
        with torch.no_grad():
            return layer(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """The gradient of the input; the layer has no other."""
        (x,) = ctx.saved_tensors
        with torch.enable_grad(), torch.autocast(*ctx.autocast):
            own = x.detach().requires_grad_(True)
            y = ctx.layer(own)
        return torch.autograd.grad(y, own, grad)[0], None


@contextmanager
def recast_in_backward(module: nn.Module, dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Layers whose weights are not on `device` as `dtype` do not keep what they are cast to for the backward pass.

    Kept, they would be a second copy of the model; and the host fetches offloaded weights into buffers that serve the
    next layers too.
    """
    layers: list[Any] = [m for m in module.modules() if is_cast(m, dtype, device)]
    for layer in layers:
        layer.forward = recast(layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # what hides the class's


def is_cast(layer: Any, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether it is a linear layer for each use of whose weight the host makes another tensor."""
    if not (hasattr(layer, "comfy_cast_weights") and hasattr(layer, "in_features")):
        return False
    weight = layer.weight
    stored = not is_plain(weight) or weight.dtype != dtype or weight.device.type != device.type
    return stored or bool(layer.weight_function)


def recast(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`forward` through `Recast` where a gradient is asked for."""

    def call(x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            return cast(Tensor, Recast.apply(x, forward))  # type: ignore[no-untyped-call]
        return forward(x)

    return call
