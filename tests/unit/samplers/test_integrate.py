"""What `integrate` promises beside its numbers: rows, counts, edges, immutability, errors."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rollout_trainer.samplers import (
    SAMPLERS,
    FlowSchedule,
    SolverFrame,
    check_finite,
    integrate,
    prepare,
    start,
    step,
    trajectory,
)
from rollout_trainer.samplers.integration import _failures

SOLVERS = [("euler", 1), ("rk4", 4), *((name, order) for name in ("dpm", "unipc") for order in (1, 2, 3))]
every_solver = pytest.mark.parametrize(("sampler", "order"), SOLVERS)


@dataclass
class Counter:
    """A smooth denoiser whose answer depends on the row, and the record of its calls."""

    first_row: int = 0
    rows: list[list[int]] = field(default_factory=list)
    sigmas: list[list[float]] = field(default_factory=list)

    def __call__(self, x: Tensor, sigma: Tensor, rows: Tensor) -> Tensor:
        assert x.shape[:1] == sigma.shape == rows.shape
        self.rows.append(rows.tolist())
        self.sigmas.append(sigma.tolist())
        expand = (-1, *[1] * (x.ndim - 1))
        return torch.cos(x + self.first_row + rows.reshape(expand)) * (1 - 0.5 * sigma.reshape(expand))

    @property
    def row_evaluations(self) -> int:
        return sum(map(len, self.rows))


def noise(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)


# Rows


@st.composite
def ragged_batches(draw: st.DrawFn) -> tuple[Tensor, str]:
    """Rows of unequal range and length, with rests anywhere; some start at noise, some end at data."""
    process = draw(st.sampled_from(["flow", "ve"]))
    steps = draw(st.integers(1, 7))
    rows = []
    for _ in range(draw(st.integers(1, 5))):
        falls = draw(st.lists(st.floats(0.01, 1.0), min_size=steps, max_size=steps))
        rests = draw(st.lists(st.booleans(), min_size=steps, max_size=steps))
        moves = torch.tensor([0.0 if rest else fall for fall, rest in zip(falls, rests, strict=True)])
        left = draw(st.sampled_from([0.0, 0.3]))  # 0: the row ends at sigma = 0
        tail = moves.double().flip(0).cumsum(0).flip(0)
        row = torch.cat([tail, torch.zeros(1)]) + left
        highest = draw(st.sampled_from([1.0, 0.8]))
        rows.append(highest * row / row[0] if row[0] > 0 else row)
    return torch.stack(rows) * (1 if process == "flow" else 5), process


@settings(max_examples=60, deadline=None, derandomize=True)
@given(ragged_batches(), st.sampled_from(SOLVERS), st.randoms(use_true_random=False))
def test_every_row_equals_its_own_run(batch, solver, random):
    sigmas, process = batch
    sampler, order = solver
    x = noise(len(sigmas), 2, 3)
    together = integrate(Counter(), x, sigmas, sampler, order, process)
    shuffled = list(range(len(sigmas)))
    random.shuffle(shuffled)
    again = integrate(
        lambda x, sigma, rows: Counter()(x, sigma, torch.tensor(shuffled)[rows]),
        x[shuffled], sigmas[shuffled], sampler, order, process,
    )  # fmt: skip
    torch.testing.assert_close(again, together[shuffled], rtol=0, atol=1e-12)
    for b, row in enumerate(sigmas):
        own = row[torch.cat([torch.tensor([True]), row.diff() < 0])]  # no rests
        denoise = Counter(first_row=b)
        alone = integrate(denoise, x[b, None], own, sampler, order, process)
        torch.testing.assert_close(together[b], alone[0], rtol=0, atol=1e-12)


@every_solver
def test_only_rows_that_move_reach_the_model(sampler, order):
    steps = torch.tensor([3, 0, 5, 1])
    sigmas = trajectory(FlowSchedule(3.0), torch.full((4,), 0.9), 0.2, steps)
    denoise = Counter()
    integrate(denoise, noise(4, 2), sigmas, sampler, order)
    cost = SAMPLERS[sampler].calls_per_step
    assert denoise.row_evaluations == cost * int(steps.sum())
    assert len(denoise.rows) == cost * int(steps.max())
    assert denoise.rows[::cost] == [[0, 2, 3], [0, 2], [0, 2], [2], [2]]


def test_a_step_to_sigma_0_is_one_call_of_rk4_too():
    # Three rows: one ends at 0 in the first step, one in the second, one not at all.
    sigmas = torch.tensor([[0.5, 0.0, 0.0], [0.5, 0.2, 0.0], [0.5, 0.3, 0.1]])
    denoise = Counter()
    integrate(denoise, noise(3, 2), sigmas, "rk4")
    assert denoise.rows == [[0, 1, 2], [1, 2], [1, 2], [1, 2], [1, 2], [2], [2], [2]]


def test_rk4_looks_at_the_middle_of_sigma():
    denoise = Counter()
    integrate(denoise, noise(1, 2), FlowSchedule(3.0).sigma(torch.tensor([0.8, 0.6]).double()), "rk4")
    sigma, sigma_next = denoise.sigmas[0][0], denoise.sigmas[3][0]
    assert denoise.sigmas[1] == denoise.sigmas[2] == [pytest.approx((sigma + sigma_next) / 2, abs=1e-15)]


# Edges


@every_solver
@pytest.mark.parametrize("shape", [(2,), (1, 3), (2, 3, 4), (2, 3, 4, 5), (2, 1, 2, 3, 4)])
def test_any_number_of_axes(sampler, order, shape):
    sigmas = FlowSchedule(3.0).sigma(torch.linspace(1, 0, 5, dtype=torch.float64))
    x = noise(*shape)
    flat = integrate(Counter(), x.reshape(len(x), -1), sigmas, sampler, order)
    assert torch.equal(integrate(Counter(), x, sigmas, sampler, order), flat.reshape(shape))


@every_solver
def test_no_step_changes_nothing_and_asks_nothing(sampler, order, process):
    for sigmas in (torch.tensor([0.5]), torch.tensor([0.5, 0.5, 0.5]), torch.zeros(3, 4), torch.ones(3, 4)):
        denoise = Counter()
        x = noise(3, 2)
        assert torch.equal(integrate(denoise, x, sigmas, sampler, order, process), x)
        assert not denoise.rows


@every_solver
def test_one_step_is_an_euler_step(sampler, order, process):
    x = noise(2, 3)
    for ends in ([1.0, 0.4], [0.7, 0.0], [1.0, 0.0]):
        sigmas = torch.tensor(ends, dtype=torch.float64)
        denoised = Counter()(x, sigmas[:1].expand(2), torch.arange(2))
        expected = denoised + sigmas[1] / sigmas[0] * (x - denoised)
        if sampler != "rk4" or ends[1] == 0:
            ours = integrate(Counter(), x, sigmas, sampler, order, process)
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-14)


@every_solver
def test_the_last_step_to_sigma_0_returns_the_prediction(sampler, order, process):
    # Exactly, so that nothing is left of an epsilon. UniPC predicts at the state it then corrects in vain.
    frames: list[SolverFrame] = []
    sigmas = torch.tensor([0.9, 0.6, 0.3, 0.0], dtype=torch.float64)
    x = integrate(Counter(), noise(2, 3), sigmas, sampler, order, process, frames.append)
    assert torch.equal(x, frames[-1].denoised)


@every_solver
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_the_state_is_float32_at_least(sampler, order, dtype, tolerance):
    sigmas = FlowSchedule(3.0).sigma(torch.linspace(0.95, 0.1, 9))
    x = noise(2, 3, 4, dtype=dtype)
    seen = set()

    def denoise(x: Tensor, sigma: Tensor, rows: Tensor) -> Tensor:
        seen.update((x.dtype, sigma.dtype))
        return Counter()(x, sigma, rows)

    ours = integrate(denoise, x, sigmas, sampler, order)
    assert ours.dtype == dtype
    assert seen == {torch.float32}
    exact = integrate(Counter(), x.double(), sigmas, sampler, order)
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=tolerance)


@every_solver
def test_a_model_may_answer_in_its_own_dtype(sampler, order):
    sigmas = torch.tensor([0.9, 0.5, 0.2])
    x = noise(2, 3, dtype=torch.float32)
    ours = integrate(lambda *a: Counter()(*a).bfloat16(), x, sigmas, sampler, order)
    rounded = integrate(lambda *a: Counter()(*a).bfloat16().float(), x, sigmas, sampler, order)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, rounded)


@every_solver
def test_autocast_around_it_changes_nothing(sampler, order):
    # A trainer's rollout runs under the autocast of its forward passes.
    sigmas = torch.tensor([[0.9, 0.6, 0.3], [0.8, 0.4, 0.4]])
    x = noise(2, 3, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = integrate(Counter(), x, sigmas, sampler, order)
    assert torch.equal(inside, integrate(Counter(), x, sigmas, sampler, order))


@every_solver
def test_gradients_flow_through(sampler, order):
    sigmas = torch.tensor([[0.9, 0.6, 0.3, 0.0], [0.8, 0.4, 0.4, 0.2]], dtype=torch.float64)
    weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, weight: Tensor) -> Tensor:
        return integrate(lambda x, sigma, rows: torch.sin(weight * x), x, sigmas, sampler, order)

    assert torch.autograd.gradcheck(run, (noise(2, 2).requires_grad_(), weight))


@every_solver
def test_close_neighbours_leave_the_systems_solvable(sampler, order, process):
    # Steps as short as float64 allows, between ordinary ones.
    gap = 1e-16
    sigmas = torch.tensor([0.8, 0.8 - gap, 0.6, 0.6 - gap, 0.3, 0.3 - gap], dtype=torch.float64)
    assert bool(integrate(Counter(), noise(2, 3), sigmas, sampler, order, process).isfinite().all())


# Purity


@every_solver
def test_arguments_and_the_global_generator_stay_as_they_are(sampler, order):
    sigmas = torch.tensor([[0.9, 0.6, 0.0], [0.8, 0.8, 0.2]])
    x = noise(2, 3)
    before, generator = (x.clone(), sigmas.clone()), torch.get_rng_state()
    integrate(Counter(), x, sigmas, sampler, order)
    assert torch.equal(x, before[0])
    assert torch.equal(sigmas, before[1])
    assert torch.equal(torch.get_rng_state(), generator)


@every_solver
def test_single_steps_are_integrate_and_states_can_be_kept(sampler, order):
    sigmas = trajectory(
        FlowSchedule(3.0), torch.tensor([1.0, 0.9, 0.7]).double(), 0.0, torch.tensor([5, 2, 4])
    )
    x = noise(3, 2)
    plan = prepare(x, sigmas, sampler, order)
    states = [start(x)]
    while states[-1].step < len(plan.steps):
        states.append(step(Counter(), states[-1], plan))
    whole = integrate(Counter(), x, sigmas, sampler, order)
    assert torch.equal(states[-1].x, whole)
    for state in states:  # going on from any of them, later, leads to the same end
        while state.step < len(plan.steps):
            state = step(Counter(), state, plan)
        assert torch.equal(state.x, whole)
    with pytest.raises(IndexError):
        step(Counter(), states[-1], plan)


@pytest.mark.parametrize("sampler", ["euler", "rk4"])
def test_the_parts_of_a_trajectory_join(sampler, process):
    # Image to image and the second half of a run are shorter sigmas. One-step methods show it exactly.
    sigmas = torch.linspace(0.9, 0.1, 9, dtype=torch.float64)
    x = noise(2, 3)
    half = integrate(Counter(), x, sigmas[:5], sampler, process=process)
    joined = integrate(Counter(), half, sigmas[4:], sampler, process=process)
    assert torch.equal(joined, integrate(Counter(), x, sigmas, sampler, process=process))


# Callback


@every_solver
def test_frames_tell_step_sigma_rows_and_denoised(sampler, order):
    sigmas = torch.tensor([[0.9, 0.9, 0.6, 0.3], [0.8, 0.5, 0.5, 0.1]], dtype=torch.float64)
    x = noise(2, 3)
    frames: list[SolverFrame] = []
    result = integrate(Counter(), x, sigmas, sampler, order, callback=frames.append)
    assert [(frame.step, frame.steps) for frame in frames] == [(0, 3), (1, 3), (2, 3)]
    assert [frame.rows.tolist() for frame in frames] == [[1], [0], [0, 1]]
    assert [frame.sigma.tolist() for frame in frames] == [[0.8], [0.9], [0.6, 0.5]]
    assert torch.equal(frames[-1].x, result)
    first = Counter()(x[1:], sigmas[1:, 0], torch.tensor([1]))
    assert torch.equal(frames[0].denoised, torch.cat([x[:1], first]))
    assert torch.equal(frames[1].denoised[1:], first)  # a resting row keeps its last one


def test_steps_in_which_nobody_moves_call_nobody():
    frames: list[SolverFrame] = []
    integrate(Counter(), noise(1, 2), torch.tensor([0.5, 0.5, 0.2]), callback=frames.append)
    assert [frame.step for frame in frames] == [1]


def test_an_exception_in_the_callback_stops_the_run():
    class CancelledError(Exception):
        pass

    def cancel(frame: SolverFrame) -> None:
        raise CancelledError

    denoise = Counter()
    with pytest.raises(CancelledError):
        integrate(denoise, noise(1, 2), torch.linspace(0.9, 0.1, 5), callback=cancel)
    assert len(denoise.rows) == 1


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler": "heun"}, "sampler must be one of .*unipc.*, got 'heun'"),
        ({"process": "vp"}, "process must be one of flow, ve, got 'vp'"),
        ({"order": 4}, "order must be 1 to 3 for unipc, got 4"),
        ({"order": 0}, "order must be 1 to 3 for unipc, got 0"),
        ({"sampler": "euler", "order": 0}, "order must be .*, got 0"),
        ({"sigmas": torch.tensor([0.5, 0.7])}, "sigmas must not increase .* 0.5 then 0.69.* step 0 of row 0"),
        ({"sigmas": torch.tensor([1.5, 0.7])}, r"sigmas must be in \[0, 1\] for flow, got 1.5"),
        ({"sigmas": torch.tensor([0.5, -0.1])}, "sigmas must be .*, got -0.1"),
        ({"sigmas": torch.tensor([torch.inf, 1]), "process": "ve"}, "sigmas must be finite .*, got inf"),
        ({"sigmas": torch.tensor([0.5, torch.nan])}, "sigmas must be .*, got nan"),
        ({"sigmas": torch.zeros(3, 2)}, r"sigmas must have shape .* batch of 2, got \(3, 2\)"),
        ({"sigmas": torch.zeros(2, 2, 2)}, r"sigmas must have shape .*, got \(2, 2, 2\)"),
        ({"sigmas": torch.zeros(0)}, r"sigmas must have shape .*, got \(0,\)"),
        ({"x": torch.zeros(2, 3, dtype=torch.long)}, "x must be a floating-point batch, got torch.int64"),
        ({"denoise": lambda x, sigma, rows: x[:1]}, r"denoise must return .* \(2, 3\), got \(1, 3\)"),
    ],
)
def test_bad_arguments_are_named_with_their_value(arguments, message):
    usual = {"denoise": Counter(), "x": noise(2, 3), "sigmas": torch.tensor([0.9, 0.5])}
    with pytest.raises(ValueError, match=message):
        integrate(**(usual | arguments))


@pytest.mark.parametrize("sampler", ["euler", "rk4"])
def test_a_solver_without_a_choice_of_orders_takes_any(sampler):
    x, sigmas = noise(2, 3), torch.tensor([0.9, 0.5])
    results = [integrate(Counter(), x, sigmas, sampler, order) for order in (1, 2, 3, 4)]
    assert all(torch.equal(results[0], other) for other in results[1:])


@every_solver
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_prediction_that_is_not_finite_names_step_and_sigma(sampler, order, bad):
    def denoise(x: Tensor, sigma: Tensor, rows: Tensor) -> Tensor:
        denoised = Counter()(x, sigma, rows)
        if 0.5 in sigma.tolist():  # for rk4 that is the last call of the step before
            denoised[rows == 2, 0] = bad
        return denoised

    sigmas = torch.tensor([0.9, 0.7, 0.5, 0.2]).expand(3, -1).clone()
    sigmas[0, 2:] = sigmas[0, 1]  # the first row has stopped by then
    where = "step 1 (sigma 0.7, row 2)" if sampler == "rk4" else "step 2 (sigma 0.5, row 2)"
    with pytest.raises(FloatingPointError, match=re.escape(where)):
        integrate(denoise, noise(3, 2), sigmas, sampler, order)


def test_huge_but_finite_predictions_pass():
    x = integrate(
        lambda x, s, r: torch.full_like(x, 3e38), noise(2, 9, dtype=torch.float32), torch.tensor([1.0, 0])
    )
    assert bool((x == 3e38).all())


def test_an_accelerator_keeps_note_of_the_first_failure():
    # There `step` must not wait for the device: it notes, `check_finite` raises. By hand, on the CPU:
    sigmas = torch.tensor([[0.9, 0.6, 0.3, 0.1], [0.9, 0.6, 0.6, 0.6]])
    plan, state = prepare(noise(2, 3), sigmas, "euler"), start(noise(2, 3))
    nan = torch.full((1, 3), torch.nan).double()
    state = replace(state, failed=torch.tensor([-1, -1]))
    check_finite(state, plan)
    failed = _failures(nan, replace(state, step=1), plan.steps[1])
    assert failed.tolist() == [1, -1]
    later = _failures(nan, replace(state, step=2, failed=failed), plan.steps[2])
    assert later.tolist() == [1, -1]
    with pytest.raises(FloatingPointError, match=r"step 1 \(sigma 0.6, row 0\)"):
        check_finite(replace(state, failed=later), plan)
