"""Networks that were written for inference, made fit for training: recomputation, and writes in place.

Two things are needed, and neither may change what the network computes. Blocks can be recomputed in the backward
pass (gradient checkpointing). And a layer's input may be overwritten after the layer has read it (``x += ...`` in a
residual stream), which autograd refuses when the layer has kept it, and which recomputation would even get wrong in
silence (an input that is kept as an alias changes under it). Such layers are found by watching one forward pass, and
are then given a copy to keep: as much memory as ``x = x + ...`` would take.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.checkpoint import checkpoint

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")
CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def blocks(module: nn.Module) -> list[nn.Module]:
    """The repeated parts of a network that are worth recomputing: the outermost members of its lists of modules.

    Members that are lists themselves are looked into, as UNets have lists of lists.
    """
    found: list[nn.Module] = []

    def visit(parent: nn.Module) -> None:
        for child in parent.children():
            member = isinstance(parent, CONTAINERS) and not isinstance(child, CONTAINERS)
            if member and next(child.children(), None) is not None:
                found.append(child)
            else:
                visit(child)

    visit(module)
    return found


@contextmanager
def recomputed(module: nn.Module) -> Iterator[None]:
    """The blocks of `module` keep only their inputs for the backward pass inside, and compute the rest again."""
    own = [(block, vars(block).get("forward")) for block in blocks(module)]
    for block, _ in own:
        block.forward = _checkpointed(block, block.forward)
    try:
        yield
    finally:
        for block, before in own:
            del block.forward  # what hides the class's
            if before is not None:
                block.forward = before


def _checkpointed(block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    # The reentrant form: its second forward builds a usual graph, in which autograd notices what was overwritten.
    # It sees only tensors that are arguments of its own, so all that the block is called with is laid out flat; and
    # it gives gradients only where an argument asks for one, hence the anchor.
    def call(*args: Any, **kwargs: Any) -> Any:
        flat, layout = tree_flatten((args, kwargs))
        trained = any(v.requires_grad for v in (*flat, *block.parameters()) if isinstance(v, Tensor))
        if not trained or not torch.is_grad_enabled():
            return forward(*args, **kwargs)

        def run(_anchor: Tensor, *given: Any) -> Any:
            # A block may write into its inputs; what is kept for the second time must not change.
            own = tree_map(
                lambda v: v.clone() if isinstance(v, Tensor) and v.is_floating_point() else v, given
            )
            args, kwargs = tree_unflatten(list(own), layout)
            return forward(*args, **kwargs)

        return checkpoint(run, torch.zeros((), requires_grad=True), *flat, use_reentrant=True)

    return call


@contextmanager
def writes_allowed(
    module: nn.Module, run: Callable[[], Tensor], device: torch.device = CPU
) -> Iterator[None]:
    """Inside, gradients flow through `module` although it writes into tensors that it has read.

    Layers whose inputs are overwritten read copies. Where that is not enough, as where the result of a bare function is
    overwritten, autograd itself copies what it has kept before a write (`allow_mutation_on_saved_tensors`): that sees
    every operation and so costs time, which the networks that do without are spared.

    Looking draws no random numbers that anybody else would have drawn: a run that is resumed looks again.

    Args:
        run: one forward pass, whose result depends on what is trained.
        device: where it is computed.
    """
    with ExitStack() as stack:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            layers = overwritten(module, run)
            if layers:
                stack.enter_context(given_copies(layers))
            fine = has_gradient(module, run())
        if not fine:
            stack.close()
            stack.enter_context(torch.autograd.graph.allow_mutation_on_saved_tensors())
            layers = []
            logger.info("autograd copies what %s overwrites", type(module).__name__)
        elif layers:
            logger.info("%d layers of %s keep copies of their inputs", len(layers), type(module).__name__)
        yield


def has_gradient(module: nn.Module, output: Tensor) -> bool:
    """Whether the gradient of a result can be had: False where something that it needs was overwritten."""
    trained = [p for p in module.parameters() if p.requires_grad]
    if not trained or not output.requires_grad:
        return True
    before = [p.grad for p in trained]
    try:
        output.float().sum().backward()  # not autograd.grad, which does not go into what is recomputed
    except RuntimeError as err:
        if "modified by an inplace operation" in str(err):
            return False
        raise
    finally:
        for p, grad in zip(trained, before, strict=True):
            p.grad = grad
    return True


def overwritten(module: nn.Module, run: Callable[[], Tensor]) -> list[nn.Module]:
    """The layers of `module` whose input is changed in place after they have read it, in one ``run()``.

    Nothing is kept for a backward pass: a tensor that is kept and then overwritten hangs on itself, by way of what
    overwrote it, and autograd would never let go of the whole graph.
    """
    seen: list[tuple[nn.Module, Tensor, int]] = []

    def note(layer: nn.Module, args: tuple[Any, ...]) -> None:
        seen.extend((layer, writes_to(a), a._version) for a in args if isinstance(a, Tensor))

    hooks = [layer.register_forward_pre_hook(note) for layer in _leaves(module)]
    try:
        with torch.autograd.graph.saved_tensors_hooks(lambda _: None, lambda _: torch.empty(0)):
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return list({layer: None for layer, writes, version in seen if writes._version != version})


def writes_to(tensor: Tensor) -> Tensor:
    """What has the same `_version` as a tensor from now on, and none of its memory."""
    counter = tensor.detach()
    counter.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return counter


@contextmanager
def given_copies(layers: list[nn.Module]) -> Iterator[None]:
    """These layers read copies of their inputs inside, while gradients are on."""

    def copied(_layer: nn.Module, args: tuple[Any, ...]) -> Any:
        if not torch.is_grad_enabled():
            return None
        return tuple(a.clone() if isinstance(a, Tensor) else a for a in args)

    hooks = [layer.register_forward_pre_hook(copied) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _leaves(module: nn.Module) -> Iterator[nn.Module]:
    return (m for m in module.modules() if next(m.children(), None) is None)


@contextmanager
def sound_attention() -> Iterator[None]:
    """Inside, PyTorch does not choose cuDNN's attention, whose backward pass cannot be relied on.

    PyTorch prefers it on Hopper from 2.11 on. It gave NaN gradients (pytorch#196678, diffusers#9768) and read beyond
    its memory (pytorch#171895); FlashAttention's has neither fault.
    """
    if not hasattr(torch.backends.cuda, "enable_cudnn_sdp"):
        yield
        return
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
