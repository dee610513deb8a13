"""How much a picture looks drawn in the demo's new style (the "blob" faces): a small classifier.

It was trained by `demo/make/style_training.py` on blob drawings other than the unseen ones, against the
base model's styles and its samples. The model card has its confusion on real held-out drawings.
"""

from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

WEIGHTS = Path(__file__).with_name("style.safetensors")
SIDE = 64
"""Pictures are shrunk to this: the style is in the silhouette, a model's artefacts are in the details."""

THRESHOLD = 0.1
"""From which probability a picture counts: half of the training pictures were blobs, so 0.5 is too strict.

Real drawings in other styles pass it in 0 to 4 % of cases, the base's samples in 0 of 48 (their largest is 0.02).
"""


class StyleNet(nn.Module):
    """Four convolutions and a pooled linear layer, 41 k weights."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 5, stride=2, padding=2),
            nn.GroupNorm(4, 16),
            nn.SiLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.GroupNorm(4, 32),
            nn.SiLU(),
            nn.Conv2d(32, 48, 3, stride=2, padding=1),
            nn.GroupNorm(4, 48),
            nn.SiLU(),
            nn.Conv2d(48, 48, 3, padding=1),
            nn.SiLU(),
        )
        self.head = nn.Linear(48 * 4 * 4, 1)

    def pooled(self, pixels: Tensor) -> Tensor:
        """[N, 3, H, W] in [0, 1] -> what the last layer sees, [N, 768]: for distances between sets of pictures."""
        small = F.interpolate(pixels, size=(SIDE, SIDE), mode="bilinear", antialias=True)
        return F.adaptive_avg_pool2d(self.features(small * 2 - 1), 4).flatten(1)  # [N, 48, 4, 4] -> [N, 768]

    def forward(self, pixels: Tensor) -> Tensor:
        """[N, 3, H, W] in [0, 1] -> log-odds of the new style, [N]."""
        logits: Tensor = self.head(self.pooled(pixels))
        return logits[:, 0]


@lru_cache(maxsize=1)
def style_net() -> StyleNet:
    """The trained classifier, on the CPU."""
    net = StyleNet()
    net.load_state_dict(load_file(WEIGHTS))
    return net.eval().requires_grad_(False)


def style_probability(images: Tensor) -> Tensor:
    """The probability of the new style: [N, 3, H, W] in [0, 1] -> float32 [N].

    Raises ValueError for any other shape.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be of shape [N, 3, H, W], got {list(images.shape)}; move the channels")
    return torch.sigmoid(style_net()(images.detach().to("cpu", torch.float32).clamp(0, 1)))


def style_rate(images: Tensor) -> float:
    """The share of images classified as the new style, 0 to 1."""
    return (style_probability(images) > THRESHOLD).float().mean().item()
