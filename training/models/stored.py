"""Frozen linear layers whose matrices are stored in fewer bits, or arrived so, and made anew for each use.

Nothing but the stored form is kept for the backward pass: a matrix as it is computed with lives as long as one product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .differentiable import blocks

SMALLEST = 1 << 14
"""Values of a matrix below which storing it in fewer bits saves nothing worth having."""


@dataclass(frozen=True)
class Form:
    """A form in which matrices are stored."""

    pack: Callable[[Tensor], tuple[Tensor, Tensor]]
    """Codes and scales of a matrix [out, in]."""
    unpack: Callable[[Tensor, Tensor, tuple[int, int], torch.dtype], Tensor]
    """The matrix again, of this shape and type."""


def _row_scale(weight: Tensor, largest: float) -> Tensor:
    # [out, 1], as bfloat16 can hold it, so that it is the same in every type that is computed in.
    scale = weight.float().abs().amax(1, keepdim=True).clamp(min=1e-12) / largest
    return scale.to(torch.bfloat16)


def _rows_in_float8(weight: Tensor) -> tuple[Tensor, Tensor]:
    largest = torch.finfo(torch.float8_e4m3fn).max
    scale = _row_scale(weight, largest)
    return (weight.float() / scale).clamp(-largest, largest).to(torch.float8_e4m3fn), scale


def _rows_in_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    scale = _row_scale(weight, 127)
    return (weight.float() / scale).round().clamp(-127, 127).to(torch.int8), scale


def _scaled(codes: Tensor, scale: Tensor, _shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    return codes.to(dtype).mul_(scale.to(dtype))


def _bitsandbytes() -> Any:
    try:
        return import_module("bitsandbytes.functional")
    except ImportError as err:
        raise RuntimeError(
            "weights nf4 needs the package bitsandbytes, which is not installed; run `pip install bitsandbytes` or "
            "choose float8"
        ) from err


NF4_BLOCK = 64
"""Values that share a scale."""


def _nf4(weight: Tensor) -> tuple[Tensor, Tensor]:
    codes, state = _bitsandbytes().quantize_4bit(weight.float(), blocksize=NF4_BLOCK, quant_type="nf4")
    return codes, state.absmax


def _from_nf4(codes: Tensor, scale: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    package = _bitsandbytes()
    state = package.QuantState(
        absmax=scale, shape=torch.Size(shape), dtype=dtype, blocksize=NF4_BLOCK, quant_type="nf4"
    )
    out: Tensor = package.dequantize_4bit(codes, quant_state=state)
    return out


FORMS: dict[str, Form] = {
    "float8": Form(_rows_in_float8, _scaled),
    "int8": Form(_rows_in_int8, _scaled),
    "nf4": Form(_nf4, _from_nf4),
}
"""By name: a byte with an exponent, a whole number of one byte, each with a scale per row; four bits (bitsandbytes)."""


class FrozenLinear(nn.Module):
    """A frozen linear layer [..., in] -> [..., out] whose matrix is made for each use."""

    in_features: int
    out_features: int
    bias: Tensor | None
    made_as: torch.dtype
    """The type that the matrix was loaded in."""
    _outline: Tensor | None = None

    def made(self, dtype: torch.dtype) -> Tensor:
        """The matrix [out, in] in this type."""
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        """The matrix [out, in], as it was loaded but for rounding."""
        return self.made(self.made_as) if self._outline is None else self._outline

    @contextmanager
    def outlined(self) -> Iterator[None]:
        """Inside, the matrix is one of the same size, type and device without numbers, which costs nothing to make."""
        device = next(self.buffers()).device
        self._outline = torch.empty((), dtype=self.made_as, device=device).expand(
            self.out_features, self.in_features
        )
        try:
            yield
        finally:
            self._outline = None

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, in the type that the matrix was loaded in, or autocast's."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        out: Tensor = _Product.apply(x.to(dtype), self)  # type: ignore[no-untyped-call]
        return out


class StoredLinear(FrozenLinear):
    """Its matrix is in one of `FORMS`."""

    def __init__(self, layer: nn.Linear, form: str) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.form = form
        self.bias = layer.bias
        self.made_as = layer.weight.dtype
        codes, scale = FORMS[form].pack(layer.weight.detach())
        self.codes: Tensor
        self.scale: Tensor
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)

    def made(self, dtype: torch.dtype) -> Tensor:
        """The matrix [out, in] in this type."""
        shape = (self.out_features, self.in_features)
        return FORMS[self.form].unpack(self.codes, self.scale, shape, dtype)

    def extra_repr(self) -> str:
        """Sizes and form."""
        return f"in_features={self.in_features}, out_features={self.out_features}, form={self.form}"


class ArrivedLinear(FrozenLinear):
    """Its matrix arrived quantised, as a tensor that wraps others: torchao's.

    What is wrapped lies in plain buffers, which can be moved, fetched and counted like any; the wrapper is made with
    the matrix. Weights alone are quantised here, also where the wrapper would round activations, through which no
    gradient goes.

    Raises:
        ValueError: the wrapper does not say how the matrix is made.
    """

    def __init__(self, layer: nn.Linear, name: str) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias = layer.bias
        weight: Any = layer.weight.detach()
        self.made_as = weight.dtype
        self._kind, self._stride = type(weight), weight.stride()
        self._wrapped, self._context = weight.__tensor_flatten__()
        for part in self._wrapped:
            self.register_buffer(part, getattr(weight, part))
        try:
            self.made(self.made_as)
        except (AttributeError, RuntimeError, TypeError) as err:
            raise ValueError(
                f"weights must be of a kind that can be made plain again, got {self._kind.__name__} for {name}; load "
                "the model in bfloat16, with weights float8 if it is to take less memory"
            ) from err

    def made(self, dtype: torch.dtype) -> Tensor:
        """The matrix [out, in] in this type."""
        parts = {name: getattr(self, name) for name in self._wrapped}
        size = torch.Size((self.out_features, self.in_features))
        weight = self._kind.__tensor_unflatten__(parts, self._context, size, self._stride)
        made: Tensor = weight.dequantize().to(dtype)
        return made

    def extra_repr(self) -> str:
        """Sizes and kind."""
        return f"in_features={self.in_features}, out_features={self.out_features}, kind={self._kind.__name__}"


class _Product(torch.autograd.Function):
    """A product with a matrix that is made for the forward and again for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FrozenLinear) -> Tensor:
        ctx.layer = layer
        with torch.autocast(x.device.type, enabled=False):
            bias = None if layer.bias is None else layer.bias.to(x.dtype)
            return F.linear(x, layer.made(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ ctx.layer.made(grad.dtype), None


def quantised(layer: nn.Module) -> bool:
    """Whether a layer's matrix is a tensor that wraps others."""
    return isinstance(layer, nn.Linear) and hasattr(layer.weight, "__tensor_flatten__")


def made_plain(network: nn.Module) -> bool:
    """Linear layers that arrived quantised become `ArrivedLinear`; whether there were any."""
    found = {name: layer for name, layer in network.named_modules() if quantised(layer)}
    for name, layer in found.items():
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, ArrivedLinear(cast(nn.Linear, layer), name))
    return bool(found)


def store(network: nn.Module, form: str, device: torch.device | str | None = None) -> None:
    """Store the matrices of the linear layers in the network's blocks in a form of `FORMS`, one after another.

    Args:
        device: where they are turned, and stay; None: where they are.
    """
    for block in blocks(network):
        for name, layer in list(block.named_modules()):
            if type(layer) is not nn.Linear or layer.weight.numel() < SMALLEST:
                continue
            parent, _, child = name.rpartition(".")
            layer.requires_grad_(False)
            setattr(
                block.get_submodule(parent),
                child,
                StoredLinear(layer.to(device or layer.weight.device), form),
            )
