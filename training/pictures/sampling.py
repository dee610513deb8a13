"""Pictures from prompts, with the solvers that training rolls out with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...samplers import SolverFrame, integrate, trajectory
from ..conditioning import Cond, alike, select
from ..forms import add_noise
from ..models.source import Denoiser, LoadedModel, ModelSource

SamplingWatch = Callable[[int, int, Tensor], None]
"""``watch(done, steps, denoised)``: `denoised` [N, C, h, w] estimates x0; may raise to cancel."""


@dataclass(frozen=True)
class Guided:
    """A denoiser under classifier-free guidance (2207.12598), as the solvers call it.

    ``denoised = uncond + scale (cond - uncond)``; both halves run in one forward of twice the rows. At
    scale 1 the unconditional half is not run.
    """

    denoiser: Denoiser
    cond: Cond
    """Named tensors [N, ...]."""
    uncond: Cond
    """Named tensors [N, ...]."""
    scale: float

    def __call__(self, x: Tensor, sigma: Tensor, rows: Tensor) -> Tensor:
        """The estimate of x0 of the rows `rows: LongTensor [A]` at `x: [A, ...]`, `sigma: [A]`."""
        cond = select(self.cond, rows)
        if self.scale == 1:
            return self.denoiser.denoised(x, sigma, cond)
        uncond = select(self.uncond, rows)
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


class Drawing:
    """Prompts made ready for one model: encoded, with their noise. Draws as often as it is told to, always alike.

    Draws from no random stream but its own, and asks the text encoders as it is made alone.

    Raises:
        ValueError: a size that the model cannot make.
    """

    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(self, source: ModelSource, prompts: Prompts) -> None:
        self.prompts = prompts
        height, width = (side or source.default_resolution for side in (prompts.height, prompts.width))
        shape = source.latent_shape(height, width)
        self._cond, free = alike(
            [source.encode_text(prompts.prompts), source.encode_text([prompts.negative])]
        )
        count = len(prompts.prompts)
        self._uncond = {name: value.expand(count, *value.shape[1:]) for name, value in free.items()}
        self._process = source.schedule.process
        self._sigmas = trajectory(source.schedule, 1.0, 0.0, prompts.steps)[0]  # [T + 1]
        noise = seeded_noise(shape, range(prompts.seed, prompts.seed + count)).to(source.device)
        self._start = add_noise(source.prediction, torch.zeros_like(noise), noise, self._sigmas[:1].to(noise))

    @torch.inference_mode(False)
    @torch.no_grad()
    def draw(self, denoiser: Denoiser, watch: SamplingWatch | None = None) -> Tensor:
        """Latents [N, C, h, w] of the pictures; `denoiser` is open, with its adapter on it.

        Raises:
            FloatingPointError: the model returned a value that is not finite.
        """

        def callback(frame: SolverFrame) -> None:
            if watch is not None:
                watch(frame.step + 1, frame.steps, frame.denoised)

        given = self.prompts
        guided = Guided(denoiser, self._cond, self._uncond, given.cfg)
        sampler, order = given.sampler, given.order
        return integrate(guided, self._start, self._sigmas, sampler, order, self._process, callback)


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
