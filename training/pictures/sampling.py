"""Pictures from prompts, with the solvers that training rolls out with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...samplers import SolverFrame, integrate, trajectory
from ..conditioning import Cond, alike, controls_of, placed, select
from ..data.dataset import LatentDataset
from ..forms import add_noise
from ..models.source import Denoiser, LoadedModel, ModelSource

SamplingWatch = Callable[[int, int, Tensor], None]
"""``watch(done, steps, denoised)``: `denoised` [N, C, h, w] estimates x0; may raise to cancel."""


@dataclass(frozen=True)
class Guided:
    """A denoiser under classifier-free guidance (2207.12598), as the solvers call it.

    ``denoised = uncond + scale (cond - uncond)``; both halves run in one forward of twice the rows, or `apart`. At
    scale 1 the unconditional half is not run.
    """

    denoiser: Denoiser
    cond: Cond
    """Named tensors [N, ...]."""
    uncond: Cond
    """Named tensors [N, ...]."""
    scale: float
    apart: bool = False
    """Whether the halves run one after the other, which takes half the memory."""

    def __call__(self, x: Tensor, sigma: Tensor, rows: Tensor) -> Tensor:
        """The estimate of x0 of the rows `rows: LongTensor [A]` at `x: [A, ...]`, `sigma: [A]`."""
        cond = select(self.cond, rows)
        if self.scale == 1:
            return self.denoiser.denoised(x, sigma, cond)
        uncond = select(self.uncond, rows)
        if self.apart:
            free = self.denoiser.denoised(x, sigma, uncond)
            return torch.lerp(free, self.denoiser.denoised(x, sigma, cond), self.scale)
        both = {name: torch.cat([value, uncond[name]]) for name, value in cond.items()}
        denoised, free = self.denoiser.denoised(torch.cat([x, x]), torch.cat([sigma, sigma]), both).chunk(2)
        return torch.lerp(free, denoised, self.scale)


def seeded_noise(shape: Sequence[int], seeds: Sequence[int]) -> Tensor:
    """Standard normal noise [N, *shape] in float32, row i from seed ``seeds[i]`` alone. Drawn on the CPU."""
    return torch.stack([torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


@dataclass(frozen=True)
class Prompts:
    """What is drawn; the settings are those of `sample`."""

    prompts: tuple[str, ...]
    negative: str = ""
    height: int | None = None
    width: int | None = None
    steps: int = 20
    sampler: str = "unipc"
    order: int = 2
    cfg: float = 1.0
    seed: int = 0
    every: int = 0
    """Training steps between two drawings, where they are drawn while a run trains."""

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError("prompts must name at least one picture, got none")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")


REFERENCES = ("reference_latents", "frame_rate")
"""How the names of controls begin that are of any size, whatever that of the picture is."""


class Drawing:
    """Prompts made ready for one model: encoded, with their noise, all in the computer's memory until they are drawn.

    Draws as often as it is told to, always alike.

    Draws from no random stream but its own, and asks the text encoders as it is made alone.

    Args:
        data: what is trained on. If its samples have controls, the prompts get those of its first ones, in turn, and
            are drawn in the size of those samples unless another is asked for.

    Raises:
        ValueError: a size that the model cannot make, or that the controls are not made for.
    """

    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(self, source: ModelSource, prompts: Prompts, data: LatentDataset | None = None) -> None:
        self.prompts = prompts
        height, width = (side or source.default_resolution for side in (prompts.height, prompts.width))
        shape = source.latent_shape(height, width)
        texts, free = alike([source.encode_text(prompts.prompts), source.encode_text([prompts.negative])])
        count = len(prompts.prompts)
        own = None if prompts.height is None and prompts.width is None else shape
        shape, controls = _controls(data, texts, count, own) or (shape, {})
        self.shape = shape
        """Of a latent: [C, h, w]."""
        self._device = source.device
        texts, free, controls = (
            {name: value.cpu() for name, value in own.items()} for own in (texts, free, controls)
        )
        self.cond: Cond = {**texts, **controls}
        """Named tensors [N, ...]."""
        self._uncond = {
            name: value.expand(count, *value.shape[1:]) for name, value in free.items()
        } | controls
        self._process = source.schedule.process
        self._sigmas = trajectory(source.schedule, 1.0, 0.0, prompts.steps)[0]  # [T + 1]
        noise = seeded_noise(shape, range(prompts.seed, prompts.seed + count))
        self._start = add_noise(source.prediction, torch.zeros_like(noise), noise, self._sigmas[:1].to(noise))

    def at_once(self, rows: int, shape: Sequence[int]) -> int:
        """How many pictures have, drawn at once, no more positions than `rows` latents of `shape`; one at least."""
        fitting = rows * math.prod(shape[1:]) // math.prod(self.shape[1:])
        return min(max(fitting, 1), len(self._start))

    @torch.inference_mode(False)
    @torch.no_grad()
    def draw(
        self,
        denoiser: Denoiser,
        watch: SamplingWatch | None = None,
        at_once: int | None = None,
        apart: bool = False,
    ) -> Tensor:
        """Latents [N, C, h, w] of the pictures; `denoiser` is open, with its adapter on it.

        Args:
            watch: called after every step, of each part.
            at_once: pictures that are drawn together; None: all of them.
            apart: the two halves of guidance are not.

        Raises:
            FloatingPointError: the model returned a value that is not finite.
        """

        def callback(frame: SolverFrame) -> None:
            if watch is not None:
                watch(frame.step + 1, frame.steps, frame.denoised)

        given, drawn = self.prompts, []
        for rows in torch.arange(len(self._start)).split(at_once or len(self._start)):
            start, cond, free = (
                placed(select(own, rows), self._device)
                for own in ({"": self._start}, self.cond, self._uncond)
            )
            guided = Guided(denoiser, cond, free, given.cfg, apart)
            levels, process = self._sigmas, self._process
            drawn.append(integrate(guided, start[""], levels, given.sampler, given.order, process, callback))
        return torch.cat(drawn)


def _controls(
    data: LatentDataset | None, texts: Cond, count: int, shape: tuple[int, ...] | None
) -> tuple[tuple[int, ...], Cond] | None:
    """Controls [N, ...] of `count` samples of one bucket, and the shape of a latent they go with; None: there are none.

    Args:
        texts: what prompts have of their own.
        shape: of the latents, if they are to have one of their own.

    Raises:
        ValueError: the controls must be of the latents' size, and no bucket has that of `shape`.
    """
    held: Cond | None = None
    for bucket in () if data is None else data.buckets:
        rows = torch.arange(count) % len(bucket)
        cond = bucket.read(rows, bucket.texts(rows, torch.zeros_like(rows)))[1]
        found = {name: value for name, value in controls_of(cond).items() if name not in texts}
        if all(name.startswith("frame_rate") for name in found):
            continue  # a still has no rate
        if shape in (None, bucket.shape):
            return bucket.shape, found
        held = held or found
    if held is None or shape is None:
        return None
    if all(name.startswith(REFERENCES) for name in held):
        return shape, held
    raise ValueError(
        "width and height of Sample Prompts must be 0 or a size that the data has, as its samples have given frames or "
        f"masks, got latents of {'x'.join(map(str, shape))}"
    )


@torch.inference_mode(False)
@torch.no_grad()
def sample(
    model: LoadedModel,
    prompts: Sequence[str],
    negative: str = "",
    height: int | None = None,
    width: int | None = None,
    steps: int = 20,
    sampler: str = "unipc",
    order: int = 2,
    cfg: float = 1.0,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    watch: SamplingWatch | None = None,
) -> Tensor:
    """One picture for each prompt.

    Args:
        model: base and adapter.
        prompts: N captions.
        negative: caption of the unconditional half under guidance.
        height, width: pixels; None takes the model's own size.
        steps: solver steps from pure noise to the picture, uniform in u.
        sampler, order: a solver of `samplers.SAMPLERS` and its order.
        cfg: guidance scale; 1 is none and halves the cost.
        seed: picture i starts from the noise of ``seed + i``, whatever the others are.
        dtype: the model computes under autocast to it; None: in its own.
        watch: called after every step.

    Returns:
        Pictures [N, 3, height, width] in [0, 1], float32, on the CPU.

    Raises:
        ValueError: no prompts, or a size, solver or number of steps that cannot be.
        FloatingPointError: the model returned a value that is not finite.
    """
    given = Prompts(tuple(prompts), negative, height, width, steps, sampler, order, cfg, seed)
    drawing = Drawing(model.source, given)
    with model.denoiser(dtype) as denoiser:
        x0 = drawing.draw(denoiser, watch)
    return model.source.decode_latents(x0).cpu()
