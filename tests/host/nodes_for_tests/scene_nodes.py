"""Clips and edit pairs that a tiny network can learn, a VAE without weights, and what a MODEL was given in a call."""

import dataclasses
import importlib.util
import types
from pathlib import Path

import torch
from torch.nn.functional import avg_pool2d, interpolate, pixel_shuffle, pixel_unshuffle

CATEGORY = "tests"
COLOURS = ((0.9, 0.2, 0.2), (0.2, 0.8, 0.3), (0.25, 0.35, 0.95), (0.95, 0.85, 0.2))
GROUND = 0.1


def tiny_families():
    """`tests/host/tiny_families.py`, which is no module of this package."""
    path = Path(__file__).resolve().parents[1] / "tiny_families.py"
    spec = importlib.util.spec_from_file_location("tiny_families_of_tests", path)
    module = importlib.util.module_from_spec(spec)
    __import__("sys").modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class TestFamily:
    """A tiny MODEL of `tiny_families.FAMILIES`; `wide`: of two heads in place of one, for Wan."""

    CATEGORY, FUNCTION, RETURN_TYPES = CATEGORY, "make", ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802  (the host's name)
        wide = ("BOOLEAN", {"default": False})
        return {"required": {"family": ("STRING", {}), "seed": ("INT", {"default": 0}), "wide": wide}}

    def make(self, family, seed, wide):
        families = tiny_families()
        if wide:
            tiny = families.FAMILIES[family]
            sizes = {"dim": 256, "ffn_dim": 256, "num_heads": 2}
            families.FAMILIES[family] = dataclasses.replace(tiny, unet=tiny.unet | sizes)
        return (families.build(family, seed),)


def scene(colour, left, side, lit=False):
    """A square of a quarter of the side on a dark ground, or one of its own colour, darker; [H, W, 3]."""
    picture = torch.tensor(colour).expand(side, side, 3) / 2 if lit else torch.full((side, side, 3), GROUND)
    picture = picture.clone()
    size = side // 4
    picture[side // 2 - size // 2 : side // 2 + size // 2, left : left + size] = torch.tensor(colour)
    return picture


class TestClips:
    """A clip for each colour: a square goes to the right and lights the ground. Only the first frame tells them apart.

    Given as lists: clips [F, H, W, 3], their first frames [1, H, W, 3], captions, which are all the same. With `turned`
    each clip has another's first frame.
    """

    CATEGORY, FUNCTION, RETURN_TYPES = CATEGORY, "make", ("IMAGE", "IMAGE", "STRING")
    OUTPUT_IS_LIST = (True, True, True)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        frames, side = ("INT", {"default": 9}), ("INT", {"default": 64})
        return {"required": {"frames": frames, "side": side, "turned": ("INT", {"default": 0})}}

    def make(self, frames, side, turned):
        room = side - side // 4
        clips = [
            torch.stack([scene(c, room * i // max(frames - 1, 1), side, i > 0) for i in range(frames)])
            for c in COLOURS
        ]
        firsts = [clip[:1] for clip in clips]
        firsts = firsts[turned:] + firsts[:turned]
        clips = [torch.cat([first, clip[1:]]) for first, clip in zip(firsts, clips, strict=True)]
        return clips, firsts, ["a square goes to the right"] * len(clips)


class TestPairs:
    """Pictures before and after an edit: the square goes to the right and the ground gets its colour, darker.

    Given as lists: after, before, instructions, which are all the same. `turned`: each after has another's before.
    """

    CATEGORY, FUNCTION, RETURN_TYPES = CATEGORY, "make", ("IMAGE", "IMAGE", "STRING")
    OUTPUT_IS_LIST = (True, True, True)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"side": ("INT", {"default": 64}), "turned": ("INT", {"default": 0})}}

    def make(self, side, turned):
        before = [scene(c, 0, side)[None] for c in COLOURS]
        after = [scene(c, side - side // 4, side, True)[None] for c in COLOURS]
        return after, before[turned:] + before[:turned], ["move the square"] * len(after)


class PatchVae:
    """Latents that are the picture: the means of small squares as channels. A clip's later frames go in fours."""

    def __init__(self, channels, factor, video):
        self.channels, self.factor, self.video = channels, factor, video
        self.patcher = types.SimpleNamespace(model=torch.nn.Module())
        self.part = (
            2 ** int((channels / 3) ** 0.5).bit_length() // 2
        )  # squares on a side of a latent's position

    def spacial_compression_encode(self):
        return self.factor

    def encode(self, pixels):
        x = pixels[..., :3].movedim(-1, 1) * 2 - 1
        x = pixel_unshuffle(avg_pool2d(x, self.factor // self.part), self.part)  # [F, 3 part^2, h, w]
        x = torch.cat([x, x.new_zeros(len(x), self.channels - x.shape[1], *x.shape[2:])], 1)
        if not self.video:
            return x
        later = [x[i : i + 4].mean(0) for i in range(1, len(x), 4)]
        return torch.stack([x[0], *later], 1)[None]

    def decode(self, latent):
        frames = latent[0].movedim(1, 0) if latent.ndim == 5 else latent  # [F, C, h, w]
        x = pixel_shuffle(frames[:, : 3 * self.part**2].float(), self.part)
        x = interpolate(x, scale_factor=self.factor // self.part)
        return (x.movedim(1, -1) / 2 + 0.5).clamp(0, 1)


class TestPatchVae:
    """A VAE that keeps pictures recognisable and has nothing to learn."""

    CATEGORY, FUNCTION, RETURN_TYPES = CATEGORY, "make", ("VAE",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        sizes = {"channels": ("INT", {"default": 16}), "factor": ("INT", {"default": 8})}
        return {"required": {**sizes, "video": ("BOOLEAN", {"default": False})}}

    def make(self, channels, factor, video):
        return (PatchVae(channels, factor, video),)


def digests(value):
    """A short name for the contents of each row of a tensor, or of a list of tensors."""
    if isinstance(value, (list, tuple)):
        rows = [digests(member) for member in value]
        return ["+".join(parts) for parts in zip(*rows, strict=True)]
    return [f"{float(row.float().abs().sum()):.4f}" for row in value]


class TestWatch:
    """The same MODEL, which notes what it is called with: sigmas, what of pictures goes with each sample, and the first
    frames of its states.

    `name` is under what `TestWatched` tells it.
    """

    CATEGORY, FUNCTION, RETURN_TYPES = CATEGORY, "watch", ("MODEL",)
    calls: dict = {}  # noqa: RUF012

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"model": ("MODEL",), "name": ("STRING", {})}}

    def watch(self, model, name):
        noted = self.calls[name] = []

        def call(apply_model, options):
            c = options["c"]
            pictures = {key: digests(c[key]) for key in ("c_concat", "ref_latents") if c.get(key) is not None}
            x = options["input"]
            first = digests(x[:, :, 0]) if x.ndim == 5 else []
            noted.append({"sigmas": options["timestep"].tolist(), "pictures": pictures, "first": first})
            return apply_model(options["input"], options["timestep"], **c)

        model = model.clone()
        model.set_model_unet_function_wrapper(call)
        return (model,)


class TestWatched:
    """The calls so far; `after` is only waited for."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = CATEGORY, "tell", (), True

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"name": ("STRING", {})}, "optional": {"after": ("*", {})}}

    @classmethod
    def IS_CHANGED(cls, **inputs):  # noqa: N802
        return float("nan")

    @classmethod
    def VALIDATE_INPUTS(cls, input_types):  # noqa: N802
        return True

    def tell(self, name, after=None):
        return {"ui": {"calls": list(TestWatch.calls[name])}}


NODES = (TestFamily, TestClips, TestPairs, TestPatchVae, TestWatch, TestWatched)
