"""Print what the solvers cost and what they reach.

    python benchmarks/samplers.py [--parts abc] [--plot PATH] [--device cpu] [--threads 1]

(a) a solver's own time per step, with a denoiser that costs nothing, against the additions it cannot avoid;
(b) a ragged batch against one row at a time and against padding, on a DiT of one million parameters;
(c) error against model calls on the exact Gaussian flow, beside diffusers' schedulers where it is installed.

The tables are Markdown. The package must be importable (`pip install -e .`).
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rollout_trainer.samplers import SAMPLERS, FlowSchedule, integrate, prepare, trajectory

SHIFT_3 = FlowSchedule(3.0)


def label(sampler: str, order: int) -> str:
    """Return the name of a solver in the tables."""
    return f"{sampler}-{order}" if SAMPLERS[sampler].multistep else sampler


def print_table(head: list[str], rows: list[list[str]]) -> None:
    """Print a Markdown table."""
    for row in (head, ["---", *["---:"] * (len(head) - 1)], *rows):
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def seconds(runs: list[Callable[[], object]], device: torch.device, rounds: int) -> list[float]:
    """Return each run's least time over the rounds. They take turns: a busy machine is busy for all."""
    times: list[list[float]] = [[] for _ in runs]
    for turn in range(rounds + 1):
        for run, spent in zip(runs, times, strict=True):
            begin = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn > 0:  # the first turn warms up
                spent.append(time.perf_counter() - begin)
    return [min(spent) for spent in times]


# (a) overhead


def keep_freed_memory() -> None:
    """Make glibc keep freed memory, whose page faults would cost more than the arithmetic, here and there."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option in (-1, -2, -3):  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD
            mallopt(option, 1 << 28)


def additions(sampler: str, order: int) -> int:
    """Tensor additions that a step cannot do without: for each of its sums, the number of terms less one."""
    if sampler == "rk4":
        return 4 + 3 + 4  # four velocities, three inner states, the result
    predictor, corrector = order, order + 1  # x with `order` predictions, and with one more
    return predictor + corrector if sampler == "unipc" else predictor


def overhead(device: torch.device, steps: int = 20) -> None:
    """Part (a)."""
    keep_freed_memory()
    x = torch.randn(8, 16, 64, 64, device=device)
    denoised = torch.randn_like(x)
    sigmas = trajectory(SHIFT_3, 0.9, 0.1, steps)[0]

    def add(count: int) -> Tensor:
        total = x
        for _ in range(count * steps):
            total = total + denoised
        return total

    rows = []
    for sampler, order in [("euler", 1), *((s, k) for s in ("dpm", "unipc") for k in (1, 2, 3)), ("rk4", 4)]:
        count = additions(sampler, order)
        solve = partial(integrate, lambda x, sigma, rows: denoised, x, sigmas, sampler, order)
        sums, solver, plan = seconds(
            [partial(add, count), solve, partial(prepare, x, sigmas, sampler, order)], device, rounds=40
        )
        times = [f"{sums / steps * 1e6:.0f}", f"{solver / steps * 1e6:.0f}"]
        rows.append([label(sampler, order), str(count), *times, f"{solver / sums:.1f}", f"{plan * 1e3:.1f}"])
    print(f"(a) Time per step, 8x16x64x64 float32, free denoiser, {steps} steps, planning included\n")
    print_table(["solver", "additions", "additions, us", "solver, us", "ratio", "planning, ms a run"], rows)


# (b) ragged batches


class Block(nn.Module):
    """Attention and MLP, modulated by the noise level (adaLN of DiT, 2212.09748)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(width, 6 * width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """`x` [B, tokens, width], `c` [B, width]."""
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(c)[:, None].chunk(6, dim=-1)
        y = nn.functional.layer_norm(x, x.shape[-1:]) * (1 + scale_1) + shift_1
        q, k, v = self.qkv(y).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + gate_1 * self.out(attended)
        y = nn.functional.layer_norm(x, x.shape[-1:]) * (1 + scale_2) + shift_2
        x = x + gate_2 * self.mlp(y)
        return x


class DiT(nn.Module):
    """A diffusion transformer for 16x16x16 latents in 64 tokens; it predicts velocity."""

    def __init__(self, channels: int = 16, width: int = 128, depth: int = 3, side: int = 8) -> None:
        super().__init__()
        self.embed = nn.Conv2d(channels, width, 2, stride=2)
        self.position = nn.Parameter(torch.randn(side * side, width) * 0.02)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU())
        self.blocks = nn.ModuleList(Block(width, 4) for _ in range(depth))
        self.unembed = nn.ConvTranspose2d(width, channels, 2, stride=2)
        self.frequency = nn.Buffer(torch.logspace(0, 3, width // 2))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """`x` [B, channels, 2 side, 2 side], `sigma` [B]."""
        angle = sigma[:, None] * self.frequency
        c = self.time(torch.cat([angle.cos(), angle.sin()], dim=-1))
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            tokens = block(tokens, c)
        image: Tensor = self.unembed(tokens.transpose(1, 2).unflatten(2, (x.shape[-2] // 2, -1)))
        return image


def ragged(device: torch.device) -> None:
    """Part (b)."""
    torch.manual_seed(0)
    model = DiT().to(device).requires_grad_(False)
    x = torch.randn(8, 16, 16, 16, device=device)
    lengths = torch.tensor([1, 2, 3, 5, 6, 7, 9, 10])
    u_end = torch.linspace(0.1, 0.7, 8, dtype=torch.float64)
    sigmas = trajectory(SHIFT_3, u_end + lengths / 50, u_end, lengths)
    equal = trajectory(SHIFT_3, u_end + lengths / 50, u_end, torch.full_like(lengths, 10))
    calls: list[int] = []

    def denoise(x: Tensor, sigma: Tensor, rows: Tensor) -> Tensor:
        calls.append(len(rows))
        velocity: Tensor = model(x, sigma)
        return x - sigma[:, None, None, None] * velocity

    def one_by_one(sampler: str, order: int) -> None:
        for b, length in enumerate(lengths.tolist()):
            integrate(denoise, x[b : b + 1], sigmas[b, : length + 1], sampler, order)

    def count(run: Callable[[], object]) -> str:
        calls.clear()
        run()
        return f"{len(calls)} / {sum(calls)}"

    rows = []
    for sampler, order in (("euler", 1), ("dpm", 2), ("unipc", 2), ("rk4", 4)):
        runs: list[Callable[[], object]] = [
            partial(one_by_one, sampler, order),
            partial(integrate, denoise, x, equal, sampler, order),
            partial(integrate, denoise, x, sigmas, sampler, order),
        ]
        times = seconds(runs, device, rounds=15)
        cells = [f"{spent * 1e3:.0f} ({count(run)})" for spent, run in zip(times, runs, strict=True)]
        rows.append([label(sampler, order), *cells, *(f"{spent / times[2]:.2f}" for spent in times[:2])])
    size = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"(b) Rows of {lengths.tolist()} steps, DiT of {size:.2f} M: ms (model calls / row-evaluations)\n")
    head = ["one by one", "padded to 10 steps", "ragged", "one by one : ragged", "padded : ragged"]
    print_table(["solver", *head], rows)


# (c) error against model calls

Error = Callable[[int, tuple[float, float]], float]
"""RMS error as a function of model calls and of the range of u."""


class Gaussians:
    """256 pixels of data N(m, s^2) as a flow: denoiser and solution are in closed form."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.m = torch.randn(1, 256, generator=generator, dtype=torch.float64)
        self.z = torch.randn(1, 256, generator=generator, dtype=torch.float64)
        self.s = 0.2 + 0.8 * torch.rand(1, 256, generator=generator, dtype=torch.float64)

    def variance(self, sigma: Tensor) -> Tensor:
        """Variance of ``(1 - sigma) x0 + sigma noise``."""
        return (1 - sigma) ** 2 * self.s**2 + sigma**2

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 given x]."""
        return self.m + (1 - sigma) * self.s**2 / self.variance(sigma) * (x - (1 - sigma) * self.m)

    def exact(self, sigma: Tensor) -> Tensor:
        """State of the exact flow at `sigma`."""
        return (1 - sigma) * self.m + self.variance(sigma).sqrt() * self.z

    def error(self, x: Tensor, sigma: Tensor) -> float:
        """RMS error of a state."""
        return float((x - self.exact(sigma)).square().mean().sqrt())


def our_error(sampler: str, order: int, calls: int, u: tuple[float, float]) -> float:
    """Error with as many steps as `calls` model calls allow."""
    problem = Gaussians()
    # The step to sigma = 0 is one call in every solver.
    last = int(u[1] == 0)
    steps = last + (calls - last) // SAMPLERS[sampler].calls_per_step
    sigmas = trajectory(SHIFT_3, *u, steps)[0]
    x = integrate(
        lambda x, sigma, rows: problem.denoise(x, sigma), problem.exact(sigmas[0]), sigmas, sampler, order
    )
    return problem.error(x, sigmas[-1])


def their_error(scheduler: str, order: int, calls: int, u: tuple[float, float]) -> float:
    """Error of a diffusers scheduler, as it is delivered, on the same noise levels."""
    import diffusers

    problem = Gaussians()
    sigmas = trajectory(SHIFT_3, *u, calls)[0]
    options: dict[str, Any] = {}
    if "Multistep" in scheduler:
        to_zero = u[1] == 0
        options = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "solver_order": order}
        options |= {"lower_order_final": to_zero, "final_sigmas_type": "zero" if to_zero else "sigma_min"}
    if scheduler.startswith("UniPC"):
        sigmas = sigmas.clamp(max=1 - 1e-6)  # as its set_timesteps does
    solver = getattr(diffusers, scheduler)(**options)
    solver.set_timesteps(calls)
    solver.sigmas = sigmas
    solver.set_begin_index(0)
    x = problem.exact(sigmas[0])
    for t, sigma in zip(solver.timesteps, sigmas, strict=False):
        x = solver.step((x - problem.denoise(x, sigma)) / sigma, t, x, return_dict=False)[0]
    return problem.error(x, sigmas[-1])


def contestants() -> dict[str, Error]:
    """Return the errors of the solvers that part (c) compares."""
    solvers = [("euler", 1), ("dpm", 2), ("dpm", 3), ("unipc", 2), ("unipc", 3), ("rk4", 4)]
    errors: dict[str, Error] = {label(*solver): partial(our_error, *solver) for solver in solvers}
    if importlib.util.find_spec("diffusers"):
        errors["diffusers Euler"] = partial(their_error, "FlowMatchEulerDiscreteScheduler", 1)
        for name in ("DPMSolver", "UniPC"):
            for order in (2, 3):
                errors[f"diffusers {name}-{order}"] = partial(their_error, f"{name}MultistepScheduler", order)
    return errors


def accuracy(plot: Path | None) -> None:
    """Part (c)."""
    calls = [5, 8, 10, 12, 16, 20, 30, 40, 50]
    ranges = {"u 0.85 to 0.05": (0.85, 0.05), "the whole way, u 1 to 0": (1.0, 0.0)}
    results = {}
    for title, u in ranges.items():
        results[title] = {name: [error(n, u) for n in calls] for name, error in contestants().items()}
        print(f"(c) RMS error against model calls, Gaussian flow, shift 3, {title}\n")
        rows = [[name, *(f"{value:.1e}" for value in row)] for name, row in results[title].items()]
        print_table(["solver", *map(str, calls)], rows)
    if plot is not None:
        draw(plot, calls, results)


def draw(path: Path, calls: list[int], results: dict[str, dict[str, list[float]]]) -> None:
    """Plot the errors of part (c), ours solid and diffusers' dashed in the colour of their counterpart."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    for axis, (title, errors) in zip(figure.subplots(1, len(results)), results.items(), strict=True):
        for i, (name, row) in enumerate(errors.items()):
            theirs = name.startswith("diffusers")
            color = f"C{i - len(errors) // 2 - 1 if theirs else i}"
            axis.loglog(calls, row, "x--" if theirs else "o-", label=name, color=color, lw=1 if theirs else 2)
        axis.set(title=f"Gaussian flow, shift 3, {title}", xlabel="model calls", ylabel="RMS error")
        axis.set_xticks(calls, [str(n) for n in calls])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default="abc", help="which of a, b and c to run")
    parser.add_argument("--plot", type=Path, help="write the plot of part (c) to this file")
    parser.add_argument("--device", default="cpu", help="cpu or cuda, for (a) and (b)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {options.threads} thread(s)"
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {where}\n")
    if "a" in options.parts:
        overhead(device)
    if "b" in options.parts:
        ragged(device)
    if "c" in options.parts:
        accuracy(options.plot)


if __name__ == "__main__":
    main()
