"""The loss of one batch: base, frequency compensation (FC) and anti-drift rectification (ADR).

ReflexFlow (2512.04904): on rolled rows of a flow model, with ``v_hat`` the training forward at ``x_hat`` and
``v_clean`` a no-grad forward at the clean interpolant,

- exposure  ``e = sg(v_clean - v_hat)``,
- FC        ``w = max(0, 1 + alpha e / norm(e))`` weighs the squared error,
- ADR       ``|| unit(v_hat) - unit(x_hat - x0) ||^2`` per sample,
- loss      ``beta2 mean(w (v_hat - target)^2) + beta1 ADR``.

Departures: the biased prediction is the training forward itself, so nothing is computed twice; ``norm`` is the
per-sample mean of |e| (``l1``, the sum, makes w = 1 +- 1e-5 on real latents), and w is never negative.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from ...samplers import sent
from ..checks import check_settings, setting
from ..forms import Prediction, expand
from .config import ReflexFlowConfig
from .states import Goal, RolledRows

LossKind = Literal["mse", "huber"]


@dataclass(frozen=True)
class LossConfig:
    """How the error of the prediction becomes a number."""

    kind: LossKind = setting(
        "mse",
        "How much an error counts. mse (usual): by its square; huber: large errors count less, for small or messy "
        "datasets.",
        choices=get_args(LossKind),
        called="loss",
    )
    huber_delta: float = setting(
        1.0,
        "For huber: an error above this no longer counts by its square, only in proportion.",
        low=1e-6,
        step=0.05,
        round=1e-6,
    )
    min_snr_gamma: float = setting(
        0.0,
        "For epsilon and v models (SD1.5, SD2, SDXL): nearly clean pictures count less, so that they do not drown the "
        "others (min-SNR). 5 is usual, 0 is off. Not used by flow models.",
        low=0,
        step=0.5,
    )

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class Loss:
    """The loss of a batch and its parts; scalars, on the device."""

    total: Tensor
    """What is minimised."""
    base: Tensor
    """Mean plain loss of all rows, without FC: comparable with ReflexFlow on and off."""
    fc: Tensor
    """``beta2 mean(w err)`` averaged over the rolled rows; NaN where there are none."""
    adr: Tensor
    """``beta1 ADR`` averaged over the rolled rows; NaN where there are none."""


TERMS = tuple(term.name for term in fields(Loss))
"""The parts of a `Loss`; a run's history has a column of that name for each."""
COLUMNS = (*TERMS, "validation")
"""The columns of a run's history that are losses. Charts, reports and the front end take them from here."""


def terms_of(losses: Sequence[Loss]) -> Tensor:
    """The `TERMS` of several batches, [A, 4]."""
    return torch.stack([torch.stack([getattr(loss, name).detach() for name in TERMS]) for loss in losses])


def mean_terms(terms: Tensor) -> Tensor:
    """Means of the `TERMS` [A, 4] over batches, [4]; of FC and ADR over the batches that had rolled rows."""
    return torch.cat([terms[:, :2].mean(0), terms[:, 2:].nanmean(0)])


def masked_mean(value: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over all axes but the first, weighted by `mask [B, 1, ...]`: ``[B, ...] -> [B]``."""
    if mask is None:
        return value.flatten(1).mean(1)
    mask = mask.expand_as(value)
    return (value * mask).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1e-8)


def elementwise(config: LossConfig, output: Tensor, target: Tensor) -> Tensor:
    """Error per element, in float32, same shape as `output`."""
    output, target = output.float(), target.float()
    if config.kind == "mse":
        return F.mse_loss(output, target, reduction="none")
    return 2 * F.huber_loss(output, target, delta=config.huber_delta, reduction="none")


def min_snr(config: LossConfig, prediction: Prediction, sigma: Tensor) -> Tensor:
    """Weight per row ``[B]``: min(SNR, gamma) / SNR for epsilon, / (SNR + 1) for v, SNR = 1 / sigma^2."""
    snr = sigma.float().square().reciprocal()
    return snr.clamp(max=config.min_snr_gamma) / (snr + 1 if prediction == "v" else snr)


def fc_weight(config: ReflexFlowConfig, clean: Tensor, output: Tensor, mask: Tensor | None) -> Tensor:
    """FC weight per element, ``max(0, 1 + alpha e / norm(e))``: above 1 where the biased output falls short."""
    e = (clean - output).float().detach()
    norm = masked_mean(e.abs(), mask)
    if config.fc_norm == "l1":
        norm = norm * e[0].numel()
    return (1 + config.alpha * e / expand(norm, e).clamp(min=1e-12)).clamp(min=0)


def adr(output: Tensor, x_hat: Tensor, x0: Tensor, mask: Tensor | None) -> Tensor:
    """Squared distance of the unit vectors of the output and of ``x_hat - x0``, per row: ``[R]`` in 0..4."""
    drift = (x_hat - x0).float()
    output = output.float()
    if mask is not None:
        output, drift = output * mask, drift * mask
    return (F.normalize(output.flatten(1), dim=1) - F.normalize(drift.flatten(1), dim=1)).square().sum(1)


def batch_loss(
    config: LossConfig,
    reflex: ReflexFlowConfig,
    prediction: Prediction,
    output: Tensor,
    goal: Goal,
    sigma: Tensor,
    mask: Tensor | None = None,
    rolled: RolledRows | None = None,
    weight: Tensor | None = None,
) -> Loss:
    """Loss of a batch; every term is a mean over elements first, then over rows.

    Args:
        output: [B, ...] in the model's own prediction form.
        goal: what it should have been.
        sigma: [B].
        mask: [B, 1, ...] weight of each place, or None.
        rolled: the rolled rows, or None.
        weight: [B] what each row's error counts, see `Denoiser.loss_weight`; None: 1.
    """
    error = elementwise(config, output, goal.output)
    scale = torch.ones_like(sigma, dtype=torch.float32) if goal.weight is None else goal.weight.float()
    if weight is not None:
        scale = scale * weight.float()
    if config.min_snr_gamma and prediction != "flow":
        scale = scale * min_snr(config, prediction, sigma)
    base = masked_mean(error, mask) * scale  # [B]
    nan = base.new_full((), torch.nan)
    if rolled is None or rolled.clean is None:
        total = base.mean()
        return Loss(total, total.detach(), nan, nan)

    rows, states = sent(rolled.rows, output.device), rolled.states
    row_mask = None if mask is None else mask[rows]
    w = fc_weight(reflex, rolled.clean, output[rows], row_mask)
    fc = reflex.beta2 * masked_mean(error[rows] * w, row_mask) * scale[rows]
    drift = reflex.beta1 * adr(output[rows], states.x_hat, states.x0, row_mask)
    total = base.index_copy(0, rows, fc + drift).mean()
    return Loss(total, base.detach().mean(), fc.detach().mean(), drift.detach().mean())
