"""A model whose latents are pixel means, its conditioning a caption's length: every number can be foretold."""

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

from rollout_trainer.training.data.encoding import encode


class Model:
    """Latents are means over 8 x 8 pixels; conditioning is the caption's length. Counts what it is asked."""

    name = "stand-in"
    dtype = torch.float32
    default_resolution = 64
    size_multiple = 8

    def __init__(self, fingerprint: str = "f") -> None:
        self.fingerprint = self.encoder_fingerprint = fingerprint
        self.images = 0
        self.captions: list[str] = []

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        if max(height, width) > 256:
            raise ValueError(f"height must be at most 256, got {height} x {width}")
        return 3, height // 8, width // 8

    def encode_images(self, pixels: Tensor) -> Tensor:
        self.images += len(pixels)
        return avg_pool2d(pixels, 8)

    def encode_text(self, captions):
        self.captions += captions
        return {"context": torch.tensor([[float(len(c))] for c in captions])}


def held(*args, **options):
    """`encode`, all in memory."""
    return encode(*args, **options).held()


def picture(path, size=(64, 64), colour=(255, 0, 0), caption="a caption", **options):
    """Save a picture of one colour, and its caption beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB" if len(colour) == 3 else "RGBA", size, colour).save(path, **options)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
