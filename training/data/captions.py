"""Captions of tags in other orders, so that no tag is learnt by its place."""

from __future__ import annotations

import hashlib

import torch


def caption_variants(caption: str, count: int, keep_tags: int) -> list[str]:
    """`count` captions: the one as written, then the same tags in orders that depend on the caption alone.

    Tags are what commas separate. A caption that has fewer than two tags to shuffle stays as written.

    Args:
        count: at least 1.
        keep_tags: so many tags at the front stay where they are.

    Raises:
        ValueError: an argument is out of range.
    """
    if count < 1 or keep_tags < 0:
        raise ValueError(
            f"caption_variants must be at least 1 and keep_tags at least 0, got {count} and {keep_tags}"
        )
    tags = [tag for tag in map(str.strip, caption.split(",")) if tag]
    kept, free = tags[:keep_tags], tags[keep_tags:]
    if len(free) < 2:
        return [caption] * count
    seed = int.from_bytes(hashlib.sha256(caption.encode()).digest()[:8], "big") >> 1  # a positive int64
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(free), generator=generator).tolist() for _ in range(count - 1)]
    return [caption, *(", ".join([*kept, *(free[i] for i in order)]) for order in orders)]
