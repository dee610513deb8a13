"""Preservation: a fixed point where the adapter has no effect, its gradient, its states, its price."""

from dataclasses import replace

import pytest
import torch

from rollout_trainer.samplers.schedules import FlowSchedule
from rollout_trainer.training.objective.config import RolloutConfig
from rollout_trainer.training.objective.preserve import (
    PreservePlan,
    draw_preserved,
    expected_evaluations,
    own_states,
    row_evaluations,
)
from rollout_trainer.training.objective.timesteps import TimestepConfig
from rollout_trainer.training.runs.run import resuming, start, train
from rollout_trainer.training.trainer.config import preserve_stream, streams
from rollout_trainer.training.trainer.trainer import Trainer, training_mode

PRESERVE = RolloutConfig(preserve="a cat\n\n a dog \na tree", preserve_rows=3, preserve_steps=5)


# --- the fixed point ----------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["flow", "epsilon", "v"])
def test_without_an_effect_the_loss_and_its_gradient_are_exactly_zero(
    prediction, make_source, make_data, make_config
):
    """A new adapter has none; and one step of training, which preservation would change, is that without it."""
    steps = {}
    for rollout in (RolloutConfig(), PRESERVE):
        source = make_source(prediction)
        with training_mode(), Trainer(source, make_data(), make_config(rollout=rollout)) as trainer:
            trainer.step()
            steps[rollout] = trainer.adapter.state().tensors
            assert trainer.history.last("preserve") == 0 or rollout is not PRESERVE
            trainer.step()
            assert trainer.history.last("preserve") > 0 or rollout is not PRESERVE
    plain, preserved = steps.values()
    assert all(torch.equal(plain[k], preserved[k]) for k in plain)


def test_the_gradient_goes_through_the_adapters_forward_alone(make_source, make_data, make_config):
    """As of ``weight mean (v(x) - sg v_base(x))^2`` at given states, made here by hand."""
    config = make_config(rollout=replace(PRESERVE, preserve_weight=3.0))
    with training_mode(), Trainer(make_source("flow"), make_data(), config) as trainer:
        for _ in range(3):
            trainer.step()
        batch = trainer.order.next(trainer.generators["captions"])
        generator = torch.Generator().set_state(trainer.generators["preserve"].get_state())
        trainer.optimizer.zero_grad()
        loss = trainer.preserve(batch)
        found = [p.grad.clone() for p in trainer.parameters]

        plan = draw_preserved(config.rollout, 3, generator)
        noise = torch.randn(3, *batch.x0.shape[1:], generator=generator)
        cond = {k: v[plan.rows] for k, v in trainer.preserved.items()}
        with torch.no_grad():
            x, sigma = own_states(plan, config.rollout, trainer.denoiser, noise, cond, lambda rows: None)
            with trainer.adapter.disabled():
                asked = trainer.denoiser.predict(x, sigma, cond)
        trainer.optimizer.zero_grad()
        error = (trainer.denoiser.predict(x, sigma, cond) - asked).square().mean()
        (3.0 * error).backward()
        torch.testing.assert_close(loss, error.detach())
        assert any(grad.abs().max() > 0 for grad in found)
        for grad, p in zip(found, trainer.parameters, strict=True):
            torch.testing.assert_close(grad, p.grad)


def test_what_the_prompts_draw_is_held(make_source, make_data, make_config):
    """After training, the model has moved less at the prompts' own states than without."""
    moved = {}
    for weight in (0.0, 20.0):
        config = make_config(rollout=replace(PRESERVE, preserve_weight=weight))
        with training_mode(), Trainer(make_source("flow"), make_data(), config) as trainer:
            for _ in range(60):
                trainer.step()
            judge = PreservePlan(torch.arange(3), torch.full((3,), 4), torch.tensor([0.2, 0.5, 0.7]).double())
            cond = trainer.source.encode_text(PRESERVE.preserved)
            noise = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(8))
            with torch.no_grad():
                x, sigma = own_states(judge, PRESERVE, trainer.denoiser, noise, cond, lambda rows: None)
                own = trainer.denoiser.predict(x, sigma, cond)
                with trainer.adapter.disabled():
                    moved[weight] = (own - trainer.denoiser.predict(x, sigma, cond)).square().mean()
    assert moved[20.0] < 0.3 * moved[0.0]


# --- its states ---------------------------------------------------------------------------------


class Line:
    """A model whose velocity is the same everywhere, for each caption: its states lie on straight lines."""

    prediction = "flow"
    schedule = FlowSchedule(2.0)

    def velocity(self, x, sigma, cond):
        return cond["context"].expand_as(x)

    def denoised(self, x, sigma, cond):
        return x - sigma[:, None] * self.velocity(x, sigma, cond)


@pytest.mark.parametrize("sampler", ["euler", "unipc", "rk4"])
def test_states_start_at_pure_noise_and_end_where_the_plan_says(sampler):
    config = replace(PRESERVE, sampler=sampler)
    plan = draw_preserved(replace(config, preserve_rows=50), 3, torch.Generator().manual_seed(0))
    assert plan.rows.unique().tolist() == [0, 1, 2]
    assert ((1 - plan.u) / plan.steps <= 1 / config.preserve_steps + 1e-12).all()  # no step is longer
    assert (
        ((1 - plan.u) / (plan.steps - 1).clamp(min=1) > 1 / config.preserve_steps)
        .logical_or(plan.steps == 1)
        .all()
    )  # and none too many are taken
    noise = torch.randn(50, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    cond, counted = {"context": plan.rows[:, None].double()}, []
    x, sigma = own_states(plan, config, Line(), noise, cond, counted.append)
    torch.testing.assert_close(sigma, Line.schedule.sigma(plan.u))
    torch.testing.assert_close(x, noise + (sigma[:, None] - 1) * cond["context"])
    assert sum(counted) + 50 == row_evaluations(config, plan.steps)


# --- its price ----------------------------------------------------------------------------------


def test_calls_are_those_of_the_formula(toy_source, make_data, make_config, tmp_path):
    config = make_config(rollout=PRESERVE, accumulation=2)
    rows = train(start(tmp_path, "t", toy_source, make_data(), config), 10).state.values["meter"]["rows"]
    generator, steps = preserve_stream(config.seed), 0
    for _ in range(20):
        plan = draw_preserved(PRESERVE, 3, generator)
        torch.randn(3, 4, 6, 6, generator=generator)
        steps += int(plan.steps.sum())
    assert rows == {"train": 2 * 10 * (4 + 3), "rollout": steps, "clean": 2 * 10 * 3, "validation": 0}
    plans = [draw_preserved(PRESERVE, 3, generator) for _ in range(4000)]
    mean = sum(row_evaluations(PRESERVE, plan.steps) + 2 * 3 for plan in plans) / len(plans)
    assert expected_evaluations(PRESERVE, 2) == 3 * (3 + 1 + 2) == pytest.approx(mean, rel=0.01)
    assert expected_evaluations(replace(PRESERVE, preserve=" "), 2) == 0


# --- beside everything else ---------------------------------------------------------------------


def test_it_draws_from_a_stream_of_its_own(toy_source, make_data, make_config, tmp_path):
    config = make_config(rollout=PRESERVE)
    on = train(start(tmp_path, "t", toy_source, make_data(), config), 5).state.group("rng")
    off = train(start(tmp_path, "t", toy_source, make_data(), make_config()), 5).state.group("rng")
    assert on.keys() - off.keys() == {"preserve"}
    assert all(torch.equal(on[name], off[name]) for name in off)
    assert all(not torch.equal(preserve_stream(3).get_state(), g.get_state()) for g in streams(3).values())


def test_resumed_is_uninterrupted(toy_source, make_data, make_config, tmp_path):
    config = make_config(rollout=replace(PRESERVE, max_step_offset=3, probability=0.5), ema_decay=0.9)
    whole = train(start(tmp_path, "t", toy_source, make_data(), config), 9).state
    half = train(start(tmp_path, "t", toy_source, make_data(), config), 4)
    with resuming(half) as stage:
        again = stage.train(5).state
    assert whole.tensors.keys() == again.tensors.keys()
    for name, tensor in whole.tensors.items():
        torch.testing.assert_close(tensor, again.tensors[name], rtol=0, atol=0, equal_nan=True)


def test_what_cannot_be_preserved_is_refused(toy_source, make_data, make_config):
    low = make_config(rollout=PRESERVE, timesteps=TimestepConfig(sigma_high=0.5))
    with pytest.raises(ValueError, match="preserve must be empty where only lower noise levels are trained"):
        Trainer(toy_source, make_data(), low)
    data = make_data()
    (bucket,) = data.buckets
    extra = bucket.cond | {"control": torch.zeros(len(bucket), 2)}
    data = replace(data, buckets=(replace(bucket, cond=extra),))
    with training_mode(), Trainer(toy_source, data, make_config(rollout=PRESERVE)) as trainer:
        batch = trainer.order.next(trainer.generators["captions"])
        with pytest.raises(ValueError, match="preserve must be empty for data with controls, got prompts"):
            trainer.preserve(batch)
