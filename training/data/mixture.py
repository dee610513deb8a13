"""Several datasets in one training, each with its share of the batches, caption dropout and weight."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .cache import cache_key
from .dataset import LatentDataset, Part

OFTEN = 300
"""Times that one picture may be seen before a line says that this is often."""


@dataclass(frozen=True)
class Added:
    """How a dataset is added to another.

    Raises:
        ValueError: a value is out of range.
    """

    share: float
    """Of the batches, in (0, 1), that are the added dataset's."""
    caption_dropout: float | None = None
    """Its own chance that a caption is left out; None: the run's."""
    loss_weight: float = 1.0
    """What its loss is multiplied with: below 1 for a regularisation set that should pull less."""

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share must be above 0 and below 1, got {self.share}")
        if self.caption_dropout is not None and not 0 <= self.caption_dropout <= 1:
            raise ValueError(f"caption_dropout must be from 0 to 1, got {self.caption_dropout}")
        if not self.loss_weight >= 0:
            raise ValueError(f"loss_weight must be at least 0, got {self.loss_weight}")


def mixed(first: LatentDataset, added: LatentDataset, how: Added) -> LatentDataset:
    """Put `added` to `first`, which may be mixed itself: its parts keep the rest of the batches between them.

    Raises:
        ValueError: the two are of other models, or captions are to be left out where there is no empty caption.
    """
    kinds = {(bucket.shape[0], len(bucket.shape)) for data in (first, added) for bucket in data.buckets}
    if len(kinds) > 1:
        raise ValueError(
            f"added must be encoded by the same model as data, got latents of {sorted(kinds)} (channels, axes)"
        )
    if added.parts:
        raise ValueError(
            "added must be one dataset, got a mixed one; wire that to data and the single one to added"
        )
    if how.caption_dropout and not added.empty_cond:
        raise ValueError(
            f"caption_dropout must be 0 for data without an empty caption, got {how.caption_dropout}; wire the "
            "conditioning of an empty text to the dataset"
        )
    old = first.parts or (Part(len(first.buckets), 1.0, first.empty_cond),)
    kept = tuple(replace(part, share=part.share * (1 - how.share)) for part in old)
    part = Part(len(added.buckets), how.share, added.empty_cond, how.caption_dropout, how.loss_weight)
    told = [how.share, how.caption_dropout, how.loss_weight]
    return LatentDataset(
        buckets=(*first.buckets, *added.buckets),
        empty_cond=first.empty_cond if added.empty_cond else {},
        fingerprint=cache_key("mixed", first.fingerprint, added.fingerprint, told)[:16],
        notes=(*first.notes, *added.notes),
        folders=(*first.folders, *added.folders),
        parts=(*kept, part),
    )


def seen(data: LatentDataset, samples: int) -> list[str]:
    """Lines that say how often pictures are seen when so many samples are trained on, and warn where that is often."""
    parts = data.parts or (Part(len(data.buckets), 1.0, data.empty_cond),)
    lines, first = [], 0
    for number, part in enumerate(parts, 1):
        buckets = data.buckets[first : first + part.buckets]
        first += part.buckets
        count, epoch = sum(map(len, buckets)), int(sum(b.repeats.sum() for b in buckets))
        most = max(int(b.repeats.max()) for b in buckets)
        often = samples * part.share / epoch
        name = "" if len(parts) == 1 else f"part {number} ({part.share:.0%} of the batches): "
        lines.append(f"{name}{count} samples, each seen {often:.3g} times" + _more(often, most))
        if often * most > OFTEN:
            lines.append(
                f"a picture is seen {often * most:.0f} times, which is often: the LoRA may learn pictures by heart; "
                "train fewer steps or add pictures"
            )
    return lines


def _more(often: float, most: int) -> str:
    return "" if most == 1 else f" a repeat, at most {often * most:.3g}"
