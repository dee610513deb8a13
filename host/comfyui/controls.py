"""Controls of a sample as conditioning, with the contents that ComfyUI's own nodes give them.

A reference becomes what ReferenceLatent adds, a mask of what is painted anew what InpaintModelConditioning adds, a
start or end frame what WanImageToVideo, WanFirstLastFrameToVideo or HunyuanImageToVideo add; families that take given
frames by a noise mask (Wan 2.2 5B, LTX, Cosmos) get them as `given` keeps them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from comfy.clip_vision import Output
from comfy.model_base import WAN21, BaseModel
from torch import Tensor

from . import given
from .pieces import Clip, Made

Control = tuple[str, Tensor]
"""Its role, and its picture [1, H, W, 3]."""
Encode = Callable[[Clip], Tensor]
"""The latent of a picture or clip [F, H, W, 3], as the autoencoder makes it."""
GREY = 0.5
"""Of pixels that are not given."""


def references(controls: Sequence[Control], encode: Encode) -> dict[str, Any]:
    """What ReferenceLatent adds."""
    latents = [encode(pixels) for role, pixels in controls if role == "reference"]
    return {"reference_latents": latents} if latents else {}


def painted_anew(mask: Tensor, target: Clip, encode: Encode) -> dict[str, Any]:
    """What InpaintModelConditioning adds.

    Args:
        mask: [1, H, W, 3], white where the target is painted anew, in every frame.
        target: [F, H, W, 3].
    """
    hidden = mask[..., :1]

    def masked(first: int, last: int) -> Tensor:
        own = target[first:last]
        return torch.where(hidden.round() > 0, torch.full_like(own, GREY), own)

    latent = encode(Made(target.shape, masked))
    shown = hidden.movedim(-1, 1)  # [1, 1, H, W]
    if latent.ndim == 5 and latent.shape[2] > 1:
        shown = shown[:, :, None].expand(1, 1, latent.shape[2], *shown.shape[-2:])
    return {"concat_latent_image": latent, "concat_mask": shown.clone()}


def frames_beside(
    model: Any, start: Tensor | None, end: Tensor | None, target: Clip, encode: Encode
) -> dict[str, Any]:
    """Given frames that are laid beside the network's input.

    Wan has a whole clip there, grey where nothing is given; other families the latent of a start frame, and no end.

    Args:
        start, end: [1, H, W, 3]; None: not given.
        target: [F, H, W, 3]; its size counts alone.
    """
    wan = isinstance(model, WAN21)

    def canvas(first: int, last: int) -> Tensor:
        out = torch.full((last - first, *target.shape[1:]), GREY)
        if end is not None and wan and last == target.shape[0]:
            out[-1:] = end
        if start is not None and first == 0:
            out[:1] = start
        return out

    latent = encode(Made(target.shape, canvas))
    frames, step = (
        latent.shape[2],
        4 if end is not None else 1,
    )  # an end is the last of four in its latent frame
    if not wan:
        first = torch.zeros(latent.shape[:2] + latent.shape[3:]) if start is None else encode(start)[:, :, 0]
        short = type(model).concat_cond is BaseModel.concat_cond  # lengthened there
        latent = torch.cat([first[:, :, None], latent[:, :, 1:] * 0], 2)[:, :, : 1 if short else frames]
    mask = torch.ones(1, frames * step, *latent.shape[3:])
    if start is not None:
        mask[:, :step] = 0.0
    if end is not None and wan:
        mask[:, -1:] = 0.0
    mask = mask.unflatten(1, (frames, step)).transpose(1, 2)
    return {"concat_latent_image": latent, "concat_mask": mask.contiguous()}


def frames_seen(start: Tensor | None, end: Tensor | None, clip_vision: Any) -> dict[str, Any]:
    """What CLIPVisionEncode makes of given frames, as WanImageToVideo and WanFirstLastFrameToVideo add it."""
    states = [
        clip_vision.encode_image(frame, crop=True).penultimate_hidden_states
        for frame in (start, end)
        if frame is not None
    ]
    if not states:
        return {}
    seen = Output()
    seen.penultimate_hidden_states = torch.cat(states, -2)
    return {"clip_vision_output": seen}


def frames_held(start: Tensor, frames: int, encode: Encode) -> dict[str, Tensor]:
    """A given start frame as `given` keeps it, of a clip of so many latent frames; `encode` as the network sees it."""
    mask = torch.ones(1, 1, frames, 1, 1)
    mask[:, :, 0] = 0.0
    return {given.MASK: mask, given.FRAMES: encode(start)}
