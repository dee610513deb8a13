"""Validation loss: the same pictures, noise and noise levels every time, never rolled out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ...samplers.schedules import Schedule
from ..conditioning import Cond
from ..data.dataset import Batch, LatentDataset
from ..forms import Prediction
from ..objective.losses import LossConfig, elementwise, masked_mean
from ..objective.states import teacher_forced, true_output

LEVELS = 8
"""Noise levels per picture, in the middle of equal parts of the trajectory."""
PICTURES = 32
"""Pictures of the validation data that are used, the first ones."""
SEED = 0
"""Of the noise: every picture and level has its own, the same in every validation of every run."""

Predict = Callable[[Tensor, Tensor, Cond], Tensor]
"""``predict(x, sigma, cond) -> model output``"""


def batches(data: LatentDataset, batch_size: int) -> Iterator[Batch]:
    """The first pictures, in order, in batches of one size each."""
    first, left = 0, PICTURES
    for bucket in data.buckets:
        ids = torch.arange(first, first + min(len(bucket), left))
        first, left = first + len(bucket), left - len(ids)
        for part in ids.split(batch_size):
            if len(part):
                yield data.batch(part)


@torch.no_grad()
def validation_loss(
    predict: Predict,
    prediction: Prediction,
    schedule: Schedule,
    data: LatentDataset,
    batch_size: int,
    device: torch.device,
    loss: LossConfig,
    within: tuple[float, float] = (0.0, 1.0),
    loss_weight: Callable[[Tensor], Tensor | None] = lambda sigma: None,
) -> float:
    """Mean loss over pictures and noise levels, without min-SNR weights or any term of ReflexFlow.

    Args:
        predict: ``predict(x, sigma, cond) -> model output`` with the adapter on and its dropout off.
        within: the part of the trajectory that the model is for.
        loss_weight: see `Denoiser.loss_weight`.
    """
    generator = torch.Generator().manual_seed(SEED)
    places = (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS
    levels = schedule.sigma(within[0] + (within[1] - within[0]) * places)
    losses = []
    for batch in batches(data, batch_size):
        batch = batch.to(device)
        x0 = batch.x0
        for level in levels:
            noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype).to(device)
            sigma = level.to(x0).expand(len(x0))
            inputs = teacher_forced(prediction, x0, noise, sigma, batch.cond, batch.mask)
            error = elementwise(loss, predict(inputs.x, sigma, inputs.cond), true_output(prediction, inputs))
            mean, weight = masked_mean(error, inputs.mask), loss_weight(sigma)
            losses.append(mean if weight is None else mean * weight)
    return float(torch.cat(losses).mean())
