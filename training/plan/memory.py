"""Will a run fit, and if not, what is the cheapest change of its settings with which it does?"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from ..data.dataset import Batch, LatentDataset
from ..models.differentiable import blocks
from ..models.source import ModelSource
from ..pictures.film import PICTURE
from ..pictures.sampling import Drawing
from ..trainer.config import TrainConfig, cost, resolved
from .needs import Needs, decoding_needs, drawing_needs, rows_of, step_needs

logger = logging.getLogger(__name__)

GIB = 1 << 30
CARD_RESERVE = GIB
"""Bytes that a card is left beyond what tensors take: gaps between them, workspaces of libraries. An assumption until
`tools/gpu_check.py` has measured it."""
LINK = 12e9
"""Bytes per second between the computer's memory and a GPU, assumed: half of what PCIe 4 x16 promises."""
RATE = 100e12
"""Operations per second of a GPU in bfloat16, assumed for the share that fetching takes of a step."""
SPLIT = 1.1
"""How many times as long a step takes as more, smaller batches, about."""
NOTEWORTHY = 0.05
"""Part of a run's peak by which its pictures may raise it without a word."""
ELSEWHERE = "part of the weights in the computer's memory"
"""What a host does by itself where a device has no room for all of a model's weights, and uses what room there is."""
SMALL_SHARE = 20
"""A model whose weights are a smaller part of the memory than one in so many fits in any case."""


@dataclass(frozen=True)
class Weights:
    """Bytes of a network's weights, by what could be done with them."""

    total: int
    linear: int
    """Of that, matrices of linear layers in blocks: what may be stored in fewer bits."""
    largest: int
    """The largest of those matrices, as it is computed with."""
    block: int
    """The largest block."""
    in_blocks: int

    def stored(self, share: float) -> int:
        """With those matrices at `share` of their size; one at a time is there as it is computed with."""
        return int(self.total - self.linear * (1 - share)) + self.largest

    @property
    def swapped(self) -> int:
        """With blocks fetched for their use: the one at work, the next one, and what is in no block."""
        return min(self.total, self.total - self.in_blocks + 2 * self.block)


@dataclass(frozen=True)
class Way:
    """A way to train."""

    changes: tuple[str, ...]
    """What is other than the user's settings, by its widgets' names; none: nothing."""
    config: TrainConfig
    peak: int
    """Bytes."""
    time: float
    """How many times as long a step takes as with the user's settings, about."""
    of_the_model: bool = False
    """Whether a change is one of how the model is loaded, which a run cannot make by itself."""


@dataclass(frozen=True)
class MemoryPlan:
    """What a run needs, and what would make it fit. Predicted from shapes, not measured."""

    budget: int
    """Bytes that there are."""
    weights: Weights
    needs: Needs
    as_is: Way
    fits: Way | None
    """The cheapest way that fits; None where none does."""
    least: Way
    """The way that needs least of those looked at."""

    def parts(self) -> dict[str, int]:
        """Bytes by part; the peak is the first three and the highest of the others."""
        own = self.needs
        return {
            "weights": self.weights.total,
            "adapter": own.adapter,
            "optimizer": own.optimizer,
            "training": own.training,
            "rollouts": own.inference,
            "update": own.update,
            "previews": own.preview,
        }

    def sentence(self, followed: bool = False) -> str:
        """What a user should know, in one line; `followed`: the run trains in the way that fits."""
        need = f"needs about {gb(self.as_is.peak)} GB of {gb(self.budget)}"
        extra = self.needs.of_previews
        if extra > NOTEWORTHY * (self.as_is.peak - extra):
            need += f", {gb(extra)} of that to draw pictures while it trains"
        if self.fits is self.as_is:
            return need
        way = self.fits or self.least
        names = " and ".join(way.changes)
        longer = f"steps {way.time:.1f} x as long"
        if self.fits is None:
            return f"{need}; the least is {gb(way.peak)} GB, with {names}, {longer}" if names else need
        verb = "trained with" if followed and not way.of_the_model else "with"
        size = self.budget if ELSEWHERE in way.changes else way.peak
        return f"{need}; {verb} {names}: {gb(size)} GB, {longer}"


def gb(size: float) -> str:
    """Bytes as a user reads them: gigabytes, of a small size two digits."""
    value = size / GIB
    return f"{value:.1f}" if value >= 0.95 else f"{value:.2g}"


@torch.inference_mode(False)  # hosts run nodes under it
def plan(
    source: ModelSource,
    data: LatentDataset,
    config: TrainConfig,
    budget: int,
    drawing: Drawing | None = None,
) -> MemoryPlan:
    """What a run of these settings needs, against `budget` bytes.

    Nothing is trained, no random number drawn, no weight read. Ways are looked at from the fastest to the slowest
    until one fits.

    Args:
        drawing: the prompts that are drawn while it trains.
    """
    config = resolved(config, source)
    batch = largest_batch(data, config.batch_size)
    previews = Previews.of(source, data, config, drawing)
    weights = weights_of(source.denoiser(None).module)
    as_is: Way | None = None
    least: Way | None = None
    first: Needs | None = None
    found: Way | None = None
    for way, needs in ways(source, batch, config, weights, previews):
        first, as_is = first or needs, as_is or way
        least = way if least is None or way.peak < least.peak else least
        if way.peak <= budget:
            found = way
            break
    assert first is not None
    assert as_is is not None
    assert least is not None
    return MemoryPlan(budget, weights, first, as_is, found, least)


@dataclass(frozen=True)
class Previews:
    """The pictures that are drawn between two steps."""

    decoded: int = 0
    """Bytes that decoding takes."""
    drawing: Drawing | None = None

    @classmethod
    def of(
        cls, source: ModelSource, data: LatentDataset, config: TrainConfig, drawing: Drawing | None
    ) -> Previews:
        """Those of a run: films, where they are asked for, and prompts."""
        filmed = [tuple(data.batch(torch.tensor([PICTURE])).x0.shape[1:])] if config.preview_every else []
        drawn = [] if drawing is None else [drawing.shape]
        return cls(max((decoding_needs(source, shape) for shape in {*filmed, *drawn}), default=0), drawing)

    def beside(self, needs: Needs, source: ModelSource, batch: Batch, config: TrainConfig) -> Needs:
        """The needs of a run with these pictures."""
        highest = self.decoded
        if self.drawing is not None:
            highest = max(highest, drawing_needs(source, batch, config, self.drawing))
        return replace(needs, preview=highest)


def ways(
    source: ModelSource, batch: Batch, config: TrainConfig, weights: Weights, previews: Previews | None = None
) -> Iterator[tuple[Way, Needs]]:
    """Ways to train, about from the fastest to the slowest, each with what it needs."""

    def needed(own: TrainConfig, size: int) -> Needs:
        part = rows_of(batch, size)
        needs = step_needs(source, part, own)
        return needs if previews is None else previews.beside(needs, source, part, own)

    now = needed(config, config.batch_size)
    extra = cost(config, source)

    def way(needs: Needs, own: TrainConfig, changes: list[str], size: int, factor: float = 1.0) -> Way:
        longer = factor * duration(needs, own, extra) / duration(now, config, extra)
        of_the_model = size != weights.total and ELSEWHERE not in changes
        return Way(tuple(changes), own, size + needs.peak, longer, of_the_model)

    yield way(now, config, [], weights.total), now
    variants: list[tuple[TrainConfig, list[str], Needs]] = []
    for switches in SWITCHES:
        own = replace(
            config,
            gradient_checkpointing=config.gradient_checkpointing or "gradient_checkpointing" in switches,
            activation_offload=config.activation_offload or "activation_offload" in switches,
        )
        named = [name for name in switches if not getattr(config, name)]
        if not named and switches:
            continue
        needs = needed(own, config.batch_size) if named else now
        if named:
            yield way(needs, own, named, weights.total), needs
        variants.append((own, named, needs))
        if config.batch_size > 1:
            one = needed(replace(own, batch_size=1), 1)
            for smaller in divisors(config.batch_size):
                split = replace(
                    own, batch_size=smaller, accumulation=own.accumulation * config.batch_size // smaller
                )
                part = between(one, needs, smaller, config.batch_size)
                told = [*named, f"batch_size {smaller}, accumulation {split.accumulation}"]
                whole = replace(part, flops=needs.flops, inference_flops=needs.inference_flops)
                yield way(whole, split, told, weights.total, SPLIT), whole
                variants.append((split, told, whole))
    for name, size, factor in model_changes(source, weights):
        for own, named, needs in variants:
            yield way(needs, own, [*named, name], size, factor), needs


SWITCHES: tuple[tuple[str, ...], ...] = (
    (),
    ("gradient_checkpointing",),
    ("gradient_checkpointing", "activation_offload"),
)


def model_changes(source: ModelSource, weights: Weights) -> Iterator[tuple[str, int, float]]:
    """How the weights could be kept instead: the name of it, bytes, and how many times as long a step takes, about."""
    offers: tuple[str, ...] = getattr(source, "weight_offers", ())
    if "float8" in offers:
        yield "weights float8", weights.stored(0.5), 1.1
    if "nf4" in offers:
        yield "weights nf4", weights.stored(0.27), 1.2
    if "swap" in offers:
        yield "swap_weights", weights.swapped, 2.0
    if "float8" in offers and "swap" in offers:
        small = replace(
            weights, total=weights.stored(0.5), block=weights.block // 2, in_blocks=weights.in_blocks // 2
        )
        yield "weights float8 and swap_weights", small.swapped, 2.0
    if "host" in offers:
        yield ELSEWHERE, weights.swapped, 2.0


def duration(needs: Needs, config: TrainConfig, extra: float) -> float:
    """About how long a step takes, in seconds of an imagined GPU."""
    work = (needs.flops + extra * needs.inference_flops) / RATE
    return max(work, 1e-12) + (2 * needs.fetched / LINK if config.activation_offload else 0.0)


def between(one: Needs, many: Needs, batch: int, of: int) -> Needs:
    """The needs of a batch from those of one sample and of `of`: all of them grow in proportion."""
    share = (batch - 1) / (of - 1)
    values = {f.name: getattr(one, f.name) for f in fields(Needs)}
    return Needs(**{k: int(v + (getattr(many, k) - v) * share) for k, v in values.items()})


def divisors(n: int) -> list[int]:
    """Numbers below `n` that divide it, the largest first."""
    return [i for i in range(n - 1, 0, -1) if n % i == 0]


def largest_batch(data: LatentDataset, size: int) -> Batch:
    """A batch of the bucket whose latents are largest, as large as a run's."""
    firsts = [sum(map(len, data.buckets[:i])) for i in range(len(data.buckets))]
    _, first = max((math.prod(b.shape), first) for b, first in zip(data.buckets, firsts, strict=True))
    return rows_of(data.batch(torch.tensor([first])), size)


def weights_of(module: nn.Module) -> Weights:
    """Bytes of a network's weights and buffers, each storage once."""
    parts = blocks(module)
    inside = {id(m) for block in parts for m in block.modules()}
    linear = [m for m in module.modules() if isinstance(m, nn.Linear) and id(m) in inside]
    matrices = [size_of([m.weight]) for m in linear if m.weight is not None]
    sizes = [size_of([*block.parameters(), *block.buffers()]) for block in parts]
    return Weights(
        total=size_of([*module.parameters(), *module.buffers()]),
        linear=sum(matrices),
        largest=max((m.weight.numel() * 2 for m in linear if m.weight is not None), default=0),
        block=max(sizes, default=0),
        in_blocks=sum(sizes),
    )


def size_of(tensors: list[Tensor]) -> int:
    """Bytes of tensors, of quantised ones as they are stored; what shares memory counts once."""
    stored = [getattr(t, "_qdata", t) for t in tensors]
    return sum({t.untyped_storage()._cdata: t.numel() * t.element_size() for t in stored}.values())


def memory_of(device: torch.device, weights: int) -> int | None:
    """Bytes that a run on `device` may take, the base's weights, which are loaded already, among them.

    None where nobody can say.
    """
    if device.type == "cuda":
        free, _total = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - CARD_RESERVE
    try:
        import psutil  # ComfyUI and diffusers bring it
    except ImportError:
        return None
    return int(psutil.virtual_memory().available) + weights


def matters(weights: int, budget: int) -> bool:
    """Whether a model is large enough for its memory that a run might not fit."""
    return weights * SMALL_SHARE >= budget


def fitted(
    source: ModelSource,
    data: LatentDataset,
    config: TrainConfig,
    follow: bool,
    drawing: Drawing | None = None,
) -> tuple[TrainConfig, str]:
    """The settings to train with, and what the user should know of the memory that it takes; "" where it is plenty.

    Args:
        follow: take the settings of the way that fits; else only say so.
        drawing: the prompts that are drawn while it trains.

    Raises:
        RuntimeError: `follow`, and what the run needs cannot be predicted.
    """
    weights = weights_of(source.denoiser(None).module).total
    budget = memory_of(source.device, weights)
    if budget is None:
        return config, ""
    budget += getattr(source, "reclaimable", int)()
    if not matters(weights, budget):
        return config, ""
    begin = time.monotonic()
    try:
        found = plan(source, data, config, budget, drawing)
    except (
        Exception
    ) as err:  # what a model does with shapes alone is its own affair, and no reason not to train
        if follow:
            raise RuntimeError(
                f"memory must be manual for {source.name}, whose need of memory cannot be predicted: {err}"
            ) from err
        logger.warning("how much memory %s needs cannot be predicted: %s", source.name, err)
        return config, ""
    told = found.sentence(follow)
    took = time.monotonic() - begin
    logger.info("%s %s (predicted in %.0f s: %s)", source.name, told, took, found.parts())
    if not follow or found.fits is None or found.fits.of_the_model:
        return config, told
    return replace(found.fits.config, lora=config.lora), told
