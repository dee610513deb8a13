"""A linear layer with its low-rank update in fewer passes over memory than peft's, and in the base's own precision.

peft computes ``base(x) + scaling * B(A(x))`` as four operations, two of which only pass over a tensor as large as the
output, and over a bfloat16 base it keeps a float32 copy of x for each layer. Here the second product adds into the
first's output, and a bfloat16 base is answered in bfloat16, as under autocast; the weights A and B stay float32.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

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
        name = self.active_adapters[0]
        base: Tensor = self.base_layer(x, *args, **kwargs)
        x = self.lora_dropout[name](x)
        down, up = cast(Tensor, self.lora_A[name].weight), cast(Tensor, self.lora_B[name].weight)
        if not autocast and few_on_a_cpu(base):
            update = F.linear(F.linear(x.float(), down), up)
            return torch.add(base, update, alpha=self.scaling[name]).to(base.dtype)
        if not autocast:
            x, down, up = (t.to(base.dtype) for t in (x, down, up))
        hidden = F.linear(x, down)
        update = torch.addmm(base.flatten(0, -2), hidden.flatten(0, -2), up.t(), alpha=self.scaling[name])
        return update.view(base.shape).to(base.dtype)


def few_on_a_cpu(base: Tensor) -> bool:
    """Whether a layer's update is computed in float32 although its output is bfloat16; compiled code has one way."""
    half = base.dtype == torch.bfloat16 and base.device.type == "cpu"
    return half and base.numel() <= SMALL and not torch.compiler.is_compiling()
