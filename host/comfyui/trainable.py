"""What a network of ComfyUI needs to be trained through; all of it is undone after."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, cast

import torch
from comfy import model_management, ops
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend


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
def exchanged(place: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute of the host's is another inside; where this version has no such thing, nothing changes."""
    if not hasattr(place, name):
        yield
        return
    before = getattr(place, name)
    setattr(place, name, value)
    try:
        yield
    finally:
        setattr(place, name, before)


def in_training() -> AbstractContextManager[None]:
    """Tell the host, where it can be told, that gradients are taken."""
    return exchanged(model_management, "in_training", True)


def sound_backends() -> AbstractContextManager[None]:
    """Inside, the host does not ask for cuDNN's attention, see `training.models.differentiable.sound_attention`."""
    asked = getattr(ops, "SDPA_BACKEND_PRIORITY", ())  # none on a CPU, or with an old PyTorch
    sound = [backend for backend in asked if backend != SDPBackend.CUDNN_ATTENTION]
    return exchanged(ops, "SDPA_BACKEND_PRIORITY", sound)


def fetched_on_use() -> AbstractContextManager[None]:
    """Inside, no family fetches the weights of a whole block before it: each layer's are fetched as it computes.

    So the backward pass and a plan on shapes find layers as they are elsewhere.
    """
    ahead = sys.modules.get("comfy.model_prefetch")
    return exchanged(ahead, "make_prefetch_queue", lambda *_args, **_options: None)


KERNELS = ("rope", "adaln")
"""Modules of comfy_kitchen's plain backend whose functions have kernels that autograd does not know."""


@contextmanager
def differentiable_kernels() -> Iterator[None]:
    """Inside, what families call of comfy_kitchen is computed by its own plain torch functions.

    The package chooses a kernel by device and dtype, also on a CPU; none has a formula for gradients.
    """
    kitchen = sys.modules.get("comfy_kitchen")
    if kitchen is None:  # older hosts do without
        yield
        return
    plain = plain_functions()
    before = {name: getattr(kitchen, name) for name in plain if hasattr(kitchen, name)}
    try:
        for name in before:
            setattr(kitchen, name, plain[name])
        yield
    finally:
        for name, function in before.items():
            setattr(kitchen, name, function)


def plain_functions() -> dict[str, Any]:
    """The public functions of comfy_kitchen's plain backend in `KERNELS`, by name."""
    found: dict[str, Any] = {}
    for name in KERNELS:
        try:
            module = importlib.import_module(f"comfy_kitchen.backends.eager.{name}")
        except ImportError:  # not in this version
            continue
        own = vars(module).items()
        found |= {k: v for k, v in own if inspect.isfunction(v) and v.__module__ == module.__name__}
    return {name: function for name, function in found.items() if not name.startswith("_")}


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
    if isinstance(tensor, nn.Parameter):
        own = nn.Parameter(own, requires_grad=False)
    vars(own).update(vars(tensor))  # the host notes on a weight what it is to be cast to
    return own


def forget_fetched(module: nn.Module) -> None:
    """Let the host fetch anew what it has fetched to the device and kept, on hosts that fetch each layer on its use.

    What it has kept since it sampled are inference tensors, which autograd cannot keep. They are neither parameters nor
    buffers.
    """
    for part in module.modules():
        if getattr(part, "_v_signature", None) is not None:
            part._v_signature = None  # type: ignore[assignment]  # as the host does for a weight that has changed


class Recast(torch.autograd.Function):
    """A frozen layer of one input whose weight is cast or fetched anew for the backward pass."""

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
        # The host has released the weight already, as if its last use were over: until the streams that fetch the next
        # ones wait for this product too, it must not be let go of. Of shapes alone, in a plan, nothing is fetched, and
        # what PyTorch's formulas in Python keep of them would stay.
        (given,) = torch.autograd.grad(y, own, grad, retain_graph=is_plain(x))
        fetchers_wait(x.device)
        return given, None


def fetchers_wait(device: torch.device) -> None:
    """The host's streams that fetch weights to `device` begin nothing before what has been computed until now is over.

    They write into buffers, or memory of their own, that serve one layer after the other.
    """
    for stream in getattr(model_management, "STREAMS", {}).get(device, ()):
        stream.wait_stream(getattr(torch, device.type).current_stream(device))


@contextmanager
def recast_in_backward(module: nn.Module, dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Layers whose weights are not on `device` as `dtype` do not keep what they are cast to for the backward pass.

    Kept, they would be a second copy of the model; and the host fetches offloaded weights into buffers that serve the
    next layers too: a layer of any kind that had kept one would find another layer's weight there, and no counter of
    versions tells autograd.
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
    """Whether it is a layer for each use of whose weight the host makes another tensor that is not to be kept.

    Of norms and convolutions a weight that is merely cast may be: it is a tensor of its own.
    """
    if not hasattr(layer, "comfy_cast_weights"):
        return False
    if is_fetched(layer, device):
        return True
    if not hasattr(layer, "in_features"):
        return False
    weight = layer.weight
    stored = not is_plain(weight) or weight.dtype != dtype
    return stored or bool(layer.weight_function)


def is_fetched(layer: Any, device: torch.device) -> bool:
    """Whether the weight of a layer is brought to the device for each use."""
    weight = getattr(layer, "weight", None)
    return hasattr(layer, "_v") or (weight is not None and weight.device.type != device.type)


def recast(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`forward` through `Recast` where a gradient is asked for."""

    def call(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            return cast(Tensor, Recast.apply(x, lambda own: forward(own, *args, **kwargs)))  # type: ignore[no-untyped-call]
        return forward(x, *args, **kwargs)

    return call


def weights_on_paper() -> AbstractContextManager[None]:
    """Layers get weights that are shapes alone inside, under PyTorch's FakeTensorMode.

    What the host fetched there would be no real bytes, and it would keep them: in its pinned copies of weights, on the
    card, in the buffers that serve all layers.
    """

    def shapes(
        layer: Any,
        input: Any = None,
        dtype: Any = None,
        device: Any = None,
        bias_dtype: Any = None,
        **how: Any,
    ) -> tuple[Any, ...]:
        dtype, device = dtype or input.dtype, device or input.device
        weight = torch.empty(layer.weight.shape, dtype=dtype, device=device)
        bias = getattr(layer, "bias", None)
        bias = None if bias is None else torch.empty(bias.shape, dtype=bias_dtype or dtype, device=device)
        return (weight, bias, None) if how.get("offloadable") else (weight, bias)

    return exchanged(ops, "cast_bias_weight", shapes)
