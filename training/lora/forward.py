"""A linear layer with its low-rank update in fewer passes over memory than peft's, and in the base's own precision.

peft computes ``base(x) + scaling * B(A(x))`` as four operations, two of which only pass over a tensor as large as the
output, and over a bfloat16 base it keeps a float32 copy of x for each layer. Here the second product adds into the
first's output, and on the way back the gradient of x that comes by A and B into the one that comes by the base. A
bfloat16 base is answered in bfloat16, as under autocast; the weights A and B stay float32.
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeGuard, cast

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn import functional as F

SMALL = 2**15
"""Numbers in an output of a bfloat16 layer up to which its update is computed in float32 on a CPU: a product in
bfloat16 takes some 40 microseconds to begin there, six of them a layer and step."""
DTYPES = (torch.float32, torch.bfloat16)
"""What the update is computed in where the base is. Not float16, whose range gradients of A and B leave."""


def fuse(layer: nn.Module, name: str) -> None:
    """Let a linear layer of peft compute its adapter `name` so; one with a variant, as DoRA, stays as it is.

    By its class: with a forward pass of its own on each layer, torch.compile would compile every block anew.
    """
    if isinstance(layer, Linear) and name not in layer.lora_variant:
        layer.__class__ = fused(type(layer))


@cache
def fused(kind: type[Linear]) -> type[Linear]:
    """The class of layers like `kind`, which peft may have made for a quantised base, that compute so."""
    return type(f"Fused{kind.__name__}", (Fused, kind), {})


class Fused(Linear):
    """A linear layer of peft with one adapter, a sum of two products."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``[..., in] -> [..., out]``"""
        autocast = torch.is_autocast_enabled(x.device.type)
        plain = self.disable_adapters or self.merged or x.ndim < 2
        if plain or not (autocast or x.dtype in DTYPES):
            return super().forward(x, *args, **kwargs)
        name, layer = self.active_adapters[0], self.base_layer
        down, up = cast(Tensor, self.lora_A[name].weight), cast(Tensor, self.lora_B[name].weight)
        whole = type(self.lora_dropout[name]) is nn.Identity and not (autocast or args or kwargs)
        if (
            whole
            and is_product(layer, x)
            and not few_on_a_cpu(x.dtype, x.device, x.numel() // layer.in_features * layer.out_features)
        ):
            down, up = down.to(x.dtype), up.to(x.dtype)
            out = LowRank.apply(x.flatten(0, -2), layer.weight, layer.bias, down, up, self.scaling[name])  # type: ignore[no-untyped-call]
            return cast(Tensor, out).view(*x.shape[:-1], layer.out_features)
        base: Tensor = layer(x, *args, **kwargs)
        x = self.lora_dropout[name](x)
        if not autocast and few_on_a_cpu(base.dtype, base.device, base.numel()):
            update = F.linear(F.linear(x.float(), down), up)
            return torch.add(base, update, alpha=self.scaling[name]).to(base.dtype)
        if not autocast:
            x, down, up = (t.to(base.dtype) for t in (x, down, up))
        hidden = F.linear(x, down)
        update = torch.addmm(base.flatten(0, -2), hidden.flatten(0, -2), up.t(), alpha=self.scaling[name])
        return update.view(base.shape).to(base.dtype)


class LowRank(torch.autograd.Function):
    """``x W^T + b + s (x A^T) B^T`` for x [N, in] with a frozen W; all of one dtype."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scaling: float
    ) -> Tensor:
        """``[N, in] -> [N, out]``"""
        hidden = F.linear(x, down)
        out = F.linear(x, weight, bias).addmm_(hidden, up.t(), alpha=scaling)
        ctx.save_for_backward(x, weight, hidden, down, up)
        ctx.scaling = scaling
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Of x, A and B."""
        x, weight, hidden, down, up = ctx.saved_tensors
        back = (grad @ up).mul_(ctx.scaling)  # [N, rank]
        of_x = (grad @ weight).addmm_(back, down) if ctx.needs_input_grad[0] else None
        return of_x, None, None, back.t() @ x, (grad.t() @ hidden).mul_(ctx.scaling), None


def is_product(layer: nn.Module, x: Tensor) -> TypeGuard[nn.Linear]:
    """Whether a layer does nothing else than a product in the dtype of `x`, and nobody watches what it is given."""
    if type(layer) is not nn.Linear or layer.weight.dtype != x.dtype:
        return False
    return not (layer._forward_pre_hooks or layer._forward_hooks or "forward" in vars(layer))


def few_on_a_cpu(dtype: torch.dtype, device: torch.device, numbers: int) -> bool:
    """Whether a layer's update is computed in float32 although its output is bfloat16; compiled code has one way."""
    half = dtype == torch.bfloat16 and device.type == "cpu"
    return half and numbers <= SMALL and not torch.compiler.is_compiling()
