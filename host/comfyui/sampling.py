"""ComfyUI's sampling as the pack's solvers see it: a SAMPLER from a function, and a model's noise levels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from comfy.model_sampling import CONST
from comfy.samplers import KSAMPLER
from torch import Tensor


@dataclass(frozen=True)
class NoiseLevels:
    """The noise levels that a MODEL was trained at."""

    process: Literal["flow", "ve"]
    table: Tensor
    """[N] ascending sigma of the training timesteps."""
    sampling: Any
    """The host's model_sampling."""

    def flow_sigma(self, u: Tensor) -> Tensor:
        """Sigma of a flow model at the fractions `u` of the trajectory, with its shift."""
        sigma: Tensor = self.sampling.sigma(u * getattr(self.sampling, "multiplier", 1.0))
        return sigma


def noise_levels(sampling: Any) -> NoiseLevels:
    """Read a model_sampling object."""
    process: Literal["flow", "ve"] = "flow" if isinstance(sampling, CONST) else "ve"
    return NoiseLevels(process, sampling.sigmas.detach().cpu().double(), sampling)


def model_noise_levels(model: Any) -> NoiseLevels:
    """Noise levels of a MODEL, patches such as ModelSamplingSD3 included."""
    return noise_levels(model.get_model_object("model_sampling"))


def as_sampler(function: Callable[..., Tensor], **options: Any) -> Any:
    """A SAMPLER that runs ``function(model, x, sigmas, extra_args, callback, disable, **options)``."""
    return KSAMPLER(function, options)


def sampled_noise_levels(model: Any) -> NoiseLevels:
    """Noise levels of the model that a sampler function was handed."""
    return model_noise_levels(model.inner_model.model_patcher)
