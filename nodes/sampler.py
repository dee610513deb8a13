"""The pack's solvers for the host's own sampling nodes: SAMPLER and SIGMAS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..host import current, io, sampling
from ..samplers import SolverFrame, TableSchedule, integrate
from ..training.objective.config import RolloutConfig
from .base import Node
from .schemas import schema
from .widgets import widgets


def sample(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], object] | None = None,
    disable: bool | None = None,
    *,
    sampler: str,
    order: int,
) -> Tensor:
    """Run a solver in the form in which the host calls its own (k-diffusion's).

    Args:
        model: ``model(x, sigma [B], **extra_args) -> denoised``: guidance and masks are inside.
        x: [B, ...] state at ``sigmas[0]``.
        sigmas: [T + 1].
        callback: called after every step with ``i, sigma, denoised, x``.

    Raises:
        Cancelled: the user asked to stop; noticed before every model call, as a step of `rk4` has four.
    """
    host = current()
    process = sampling.sampled_noise_levels(model).process

    def denoise(x: Tensor, sigma: Tensor, rows: Tensor) -> Tensor:  # one schedule: all rows move together
        host.check_cancelled()
        denoised: Tensor = model(x, sigma, **(extra_args or {}))
        return denoised

    def show(frame: SolverFrame) -> None:
        if callback is not None:
            sigma = sigmas[frame.step]
            callback(
                {
                    "i": frame.step,
                    "sigma": sigma,
                    "sigma_hat": sigma,
                    "denoised": frame.denoised,
                    "x": frame.x,
                }
            )

    return integrate(denoise, x, sigmas, sampler, order, process, show)


def solver_inputs(**sampler: Any) -> list[io.Input]:
    """The solver and its order, for what samples a whole picture; `sampler` overrides its default or tooltip."""
    tooltip = (
        "How the picture is calculated from noise. unipc is accurate in few steps, euler is the simplest, rk4 calls "
        "the model four times a step."
    )
    own = {"sampler": {"tooltip": tooltip} | sampler}
    return widgets(RolloutConfig, {"sampler": "sampler", "order": "order"}, own)


class RolloutSampler(Node):
    """One of the pack's solvers as the host's SAMPLER."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="RolloutSampler",
            display_name="Rollout Sampler",
            description="The solvers that rollouts use in training, for ComfyUI's SamplerCustom and "
            "SamplerCustomAdvanced.",
            inputs=[
                *solver_inputs(),
            ],
            outputs=[
                io.Sampler.Output(
                    display_name="sampler",
                    tooltip="For the input sampler of SamplerCustom or SamplerCustomAdvanced.",
                )
            ],
        )

    @classmethod
    def execute(cls, sampler: str, order: int) -> io.NodeOutput:
        """Hand it to the host."""
        return io.NodeOutput(sampling.as_sampler(sample, sampler=sampler, order=order))


class RolloutSigmas(Node):
    """Noise levels as training sees them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            node_id="RolloutSigmas",
            display_name="Rollout Sigmas",
            description="Noise levels of equal steps from noise to picture, as rollouts take them, with the model's "
            "own shift.",
            inputs=[
                io.Model.Input("model", tooltip="The model that will sample."),
                io.Int.Input("steps", default=20, min=1, max=10000, tooltip="Steps from start to end."),
                io.Float.Input(
                    "start",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Where to start: 1 is pure noise; less keeps more of an input picture.",
                ),
                io.Float.Input(
                    "end",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Where to stop: 0 is the finished picture.",
                ),
            ],
            outputs=[
                io.Sigmas.Output(
                    display_name="sigmas",
                    tooltip="For the input sigmas of SamplerCustom or SamplerCustomAdvanced.",
                )
            ],
        )

    @classmethod
    def execute(cls, model: Any, steps: int, start: float, end: float) -> io.NodeOutput:
        """Uniform in u, through the model's own schedule."""
        if start <= end:
            raise ValueError(
                f"start must be above end ({end}), got {start}; noise levels fall from start to end"
            )
        levels = sampling.model_noise_levels(model)
        u = torch.linspace(start, end, steps + 1, dtype=torch.float64)
        sigmas = levels.flow_sigma(u) if levels.process == "flow" else TableSchedule(levels.table).sigma(u)
        return io.NodeOutput(sigmas.to(torch.float32))
