"""What one training step needs beside the weights: the pack's own forward, loss, backward and optimiser, on shapes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ..data.dataset import Batch
from ..forms import Prediction
from ..lora.adapter import Adapter, target_modules
from ..models.source import Denoiser, ModelSource
from ..objective.losses import batch_loss
from ..objective.states import Inputs, teacher_forced, training_goal
from ..objective.targets import TARGETS
from ..pictures.sampling import Drawing
from ..trainer.config import TrainConfig
from ..trainer.offload import kept_elsewhere
from ..trainer.optim import OptimizerConfig, build_optimizer
from .alike import Rows, shortened
from .ledger import Ledger, accounted, fake_mode

logger = logging.getLogger(__name__)

N = TypeVar("N")
AUTOCAST = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
EIGHT_BIT = 2 * (1 + 4 / 256)
"""Bytes of bitsandbytes' two states per value: a byte each, and a scale for each 256 of them."""


@dataclass(frozen=True)
class Needs:
    """Bytes on the device that trains, beside the base's weights; and floating-point operations."""

    adapter: int
    """The adapter's weights, float32."""
    optimizer: int
    """The optimiser's states, and the moving average where there is one."""
    update: int
    """While the optimiser steps: gradients, and what it makes on the way."""
    training: int
    """While a batch goes forward and back, gradients included: the highest."""
    kept: int
    """After the forward pass: what is kept for the backward pass."""
    fetched: int
    """What is kept elsewhere in the meantime, with `activation_offload`."""
    inference: int
    """While a batch goes forward without gradient, as in a rollout, a film or a validation: the highest."""
    flops: int
    """Of a training pass over the batch, recomputation included."""
    inference_flops: int
    """Of a pass without gradient."""
    preview: int = 0
    """While a film or pictures of prompts are drawn and decoded between two steps: the highest."""

    @property
    def peak(self) -> int:
        """The highest of a run, without the base's weights."""
        return self.adapter + self.optimizer + max(self.training, self.update, self.inference, self.preview)

    @property
    def of_previews(self) -> int:
        """Bytes by which previews raise the peak."""
        return self.peak - replace(self, preview=0).peak


def step_needs(source: ModelSource, batch: Batch, config: TrainConfig, real: bool = False) -> Needs:
    """What a step of a run with these settings needs.

    Args:
        source: a model with real weights, which are not read, or one whose network was made under FakeTensorMode.
        batch: rows such as the largest that the run will see.
        config: with `lora.targets` filled in.
        real: compute in earnest instead, for comparison.
    """
    if real:
        return _step_needs(source, batch, config, real=True)
    return in_few_blocks(source, partial(_step_needs, source, batch, config))


def in_few_blocks(source: ModelSource, ask: Callable[..., N]) -> N:
    """What `ask` finds with the network's equal blocks shortened to a few; else with the whole network."""
    if getattr(source, "swap", None) is None:  # which fetches the blocks that come next by their number
        try:
            return ask(short=True)
        except Exception as err:  # a network's own code may count its blocks, and fail in any way
            logger.info("the plan runs the whole network of %s: %s", source.name, err)
    return ask(short=False)


def _step_needs(
    source: ModelSource, batch: Batch, config: TrainConfig, short: bool = False, real: bool = False
) -> Needs:
    denoiser = source.denoiser(AUTOCAST[config.autocast])
    with (
        denoiser.opened(True, config.gradient_checkpointing),
        few_blocks(denoiser.module, config, short) as rows,
        adapted(denoiser.module, source, config) as adapter,
    ):
        parameters = adapter.parameters()
        adapter_size = sum(p.nbytes for p in rows.all_of(parameters))
        on_paper = getattr(source, "on_paper", nullcontext)
        with (
            nullcontext() if real else on_paper(),
            accounted(denoiser.module, source.device, real) as ledger,
        ):
            rows.follow(ledger)
            base = ledger.live
            inputs = inputs_of(batch, source)
            ledger.put_in([inputs.x, inputs.noise, *inputs.cond.values()])
            ledger.restart()
            with torch.no_grad():
                denoiser.predict(inputs.x, inputs.sigma, inputs.cond)
            inference, inference_flops = ledger.peak - base, ledger.flops
            ledger.restart()
            with adapter.dropout():
                kept, fetched = one_pass(denoiser, source.prediction, inputs, config, ledger)
            training, flops = ledger.peak - base, ledger.flops
        for p in parameters:
            p.grad = None
        rows.check(ledger)
        states, update = optimizer_needs(config.optimizer, rows.all_of(parameters))
    average = adapter_size if config.ema_decay else 0
    before = adapter_size if config.accumulation > 1 else 0  # gradients of the passes before
    return Needs(
        adapter=adapter_size,
        optimizer=states + average,
        update=update,
        training=training + before,
        kept=kept - base,
        fetched=fetched,
        inference=inference + before,
        flops=flops,
        inference_flops=inference_flops,
    )


def few_blocks(module: nn.Module, config: TrainConfig, short: bool) -> AbstractContextManager[Rows]:
    """The network with few of its equal blocks, or as it is."""
    chosen = partial(target_modules, patterns=config.lora.targets)
    return shortened(module, chosen) if short else nullcontext(Rows())


def drawing_needs(source: ModelSource, batch: Batch, config: TrainConfig, drawing: Drawing) -> int:
    """Bytes that a forward pass takes while prompts are drawn as a run with such a largest `batch` draws them."""
    halves = 1 if drawing.prompts.cfg == 1 or config.activation_offload else 2
    size = drawing.at_once(len(batch.x0), batch.x0.shape[1:]) * halves
    x0 = torch.zeros(1, *drawing.shape, dtype=batch.x0.dtype)
    drawn = rows_of(replace(batch, x0=x0, cond=drawing.cond, mask=None), size)
    return in_few_blocks(source, partial(_drawing_needs, source, drawn, config))


def _drawing_needs(source: ModelSource, drawn: Batch, config: TrainConfig, short: bool) -> int:
    denoiser = source.denoiser(AUTOCAST[config.autocast])
    on_paper = getattr(source, "on_paper", nullcontext)
    with (
        denoiser.opened(),
        few_blocks(denoiser.module, config, short) as rows,
        adapted(denoiser.module, source, config),
        on_paper(),
        accounted(denoiser.module, source.device) as ledger,
        torch.no_grad(),
    ):
        rows.follow(ledger)
        before = ledger.live
        inputs = inputs_of(drawn, source)
        ledger.put_in([inputs.x, inputs.noise, *inputs.cond.values()])
        denoiser.predict(inputs.x, inputs.sigma, inputs.cond)
        rows.check(ledger)
        return ledger.peak - before


def rows_of(batch: Batch, size: int) -> Batch:
    """`size` rows like the first of a batch."""

    def repeated(tensor: Tensor) -> Tensor:
        return tensor[:1].expand(size, *tensor.shape[1:]).contiguous()

    cond = {name: repeated(value) for name, value in batch.cond.items()}
    mask = None if batch.mask is None else repeated(batch.mask)
    return replace(batch, x0=repeated(batch.x0), cond=cond, mask=mask, ids=batch.ids[:1].expand(size))


def decoding_needs(source: ModelSource, shape: Sequence[int]) -> int:
    """Bytes that decoding a latent of `shape` takes while a run trains, the decoder's visit included.

    0 where the source decodes no previews: ComfyUI's MODEL shows a pixel for each position of a latent.
    """
    decoder = getattr(source, "decoder", None)
    if decoder is None:
        return 0
    with source.on_paper(), accounted(decoder, source.device) as ledger:  # type: ignore[attr-defined]
        before = ledger.live
        source.preview_latents(torch.zeros(1, *shape))
        return ledger.peak - before


def one_pass(
    denoiser: Denoiser, prediction: Prediction, inputs: Inputs, config: TrainConfig, ledger: Ledger
) -> tuple[int, int]:
    """Forward, loss, backward; the bytes that are alive between the two, and those that are kept elsewhere."""
    elsewhere = kept_elsewhere(ledger.left_out, ledger.elsewhere)
    with elsewhere if config.activation_offload else nullcontext():
        output = denoiser.predict(inputs.x, inputs.sigma, inputs.cond)
    goal = training_goal(prediction, inputs, TARGETS[config.rollout.target], None, output)
    reflex = config.rollout.reflexflow
    weight = denoiser.loss_weight(inputs.sigma)
    loss = batch_loss(config.loss, reflex, prediction, output, goal, inputs.sigma, inputs.mask, weight=weight)
    kept, fetched = ledger.live, ledger.fetched
    loss.total.backward()
    return kept, fetched


def inputs_of(batch: Batch, source: ModelSource) -> Inputs:
    """A batch as the trainer hands it to the model, at some noise level."""
    batch = batch.to(source.device)
    noise = torch.zeros_like(batch.x0)
    sigma = torch.full((len(batch.x0),), 0.5, device=source.device, dtype=batch.x0.dtype)
    return teacher_forced(source.prediction, batch.x0, noise, sigma, batch.cond, batch.mask)


def optimizer_needs(config: OptimizerConfig, parameters: Sequence[nn.Parameter]) -> tuple[int, int]:
    """Bytes of the optimiser's states; and, while it steps, of gradients and what it makes on the way."""
    if (
        config.name == "adamw8bit"
    ):  # bitsandbytes' own kernels cannot run on shapes; small tensors keep float32
        size = sum(p.nbytes for p in parameters)
        return sum(int(p.numel() * (EIGHT_BIT if p.numel() >= 4096 else 8)) for p in parameters), size
    return stepping(config, tuple((p.shape, p.dtype, p.device) for p in parameters))


@lru_cache(maxsize=16)
def stepping(
    config: OptimizerConfig, forms: tuple[tuple[torch.Size, torch.dtype, torch.device], ...]
) -> tuple[int, int]:
    """The same, of parameters of these forms, on shapes: the ways of a plan differ in other things."""
    with FakeTensorMode(), Ledger(forms[0][2]) as ledger:
        shapes = [
            nn.Parameter(torch.empty(shape, dtype=dtype, device=device)) for shape, dtype, device in forms
        ]
        for p in shapes:
            p.grad = torch.empty_like(p)
        size, before = sum(p.nbytes for p in shapes), ledger.live
        optimizer = build_optimizer(config, shapes)
        optimizer.step()
        states = ledger.live - before
        ledger.restart()
        optimizer.step()
        return states, size + ledger.peak - ledger.live


@contextmanager
def adapted(module: nn.Module, source: ModelSource, config: TrainConfig) -> Iterator[Adapter]:
    """`module` carries the run's adapter inside."""
    mode, made_fake = fake_mode(module.parameters())
    with mode if made_fake else nullcontext():
        adapter = Adapter(module, config.lora, config.seed, source.device)
    try:
        yield adapter
    finally:
        adapter.detach()
