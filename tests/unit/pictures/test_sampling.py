"""Sampling on a model whose exact denoiser is known: Gaussian data, one mean per caption."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from rollout_trainer.samplers import FlowSchedule, TableSchedule
from rollout_trainer.training.forms import expand, from_velocity
from rollout_trainer.training.models.source import Denoiser, LoadedModel
from rollout_trainer.training.pictures.sampling import sample, seeded_noise

STD = 0.3
MEANS = {"": 0.0, "one": 1.0, "two": 2.0, "bad": -1.0}


class Source(Denoiser):
    """Data N(mean of the caption, STD^2) in each of 2 x 4 x 4 places; decoding is the identity."""

    name = "gauss"
    device = torch.device("cpu")
    default_resolution = 4

    def __init__(self, prediction="flow", shift=1.0):
        self.prediction = prediction
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        flow = prediction == "flow"
        self.schedule = (
            FlowSchedule(shift) if flow else TableSchedule.from_alphas_cumprod((1 - betas).cumprod(0))
        )
        self.module = nn.Identity()
        self.calls = []

    def latent_shape(self, height, width):
        return 2, height, width

    def denoiser(self, dtype=None):
        return self

    def opened(self, training=False, checkpointing=False):
        return nullcontext()

    def encode_text(self, captions):
        return {"mean": torch.tensor([[MEANS[c]] for c in captions])}

    def decode_latents(self, latents):
        return latents

    def std(self, sigma):
        keep = 1 - sigma if self.prediction == "flow" else torch.ones_like(sigma)
        return ((keep * STD) ** 2 + sigma**2).sqrt(), keep

    def predict(self, x, sigma, cond):
        self.calls.append(len(x))
        std, keep = (expand(value, x) for value in self.std(sigma))
        mean = expand(cond["mean"][:, 0], x)
        denoised = mean + keep * STD**2 / std**2 * (x - keep * mean)
        return from_velocity(self.prediction, x, sigma, (x - denoised) / expand(sigma, x))


def exact(source, captions, shape, seed):
    """Where the exact flow takes the same starting noise."""
    noise = seeded_noise(shape, range(seed, seed + len(captions)))
    sigma = source.schedule.sigma(torch.ones(1))
    std, keep = (expand(value, noise) for value in source.std(sigma))
    mean = expand(torch.tensor([MEANS[c] for c in captions]), noise)
    z = (noise * expand(sigma, noise) - keep * mean) / std
    return mean + STD * z


@pytest.mark.parametrize("prediction", ["flow", "epsilon", "v"])
@pytest.mark.parametrize("sampler", ["euler", "dpm", "unipc", "rk4"])
def test_samples_are_where_the_exact_flow_ends(prediction, sampler):
    source = Source(prediction)
    got = sample(LoadedModel(source), ["one", "two"], steps=200, sampler=sampler, seed=3)
    # VE: the last step, from the first few training timesteps to 0, is of order 1 for every solver.
    tolerance = {"flow": (0.01, 0.002)}.get(prediction, (0.04, 0.02))[sampler != "euler"]
    torch.testing.assert_close(got, exact(source, ["one", "two"], (2, 4, 4), 3), rtol=0, atol=tolerance)


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_an_image_does_not_depend_on_the_batch(cfg):
    model = LoadedModel(Source())
    together = sample(model, ["one", "two", ""], steps=5, cfg=cfg, seed=7)
    for i, caption in enumerate(["one", "two", ""]):
        assert torch.equal(sample(model, [caption], steps=5, cfg=cfg, seed=7 + i)[0], together[i])


def test_guidance_runs_both_halves_in_one_call():
    source = Source()
    sample(LoadedModel(source), ["one", "two"], steps=4, sampler="euler", cfg=2.0)
    assert source.calls == [4, 4, 4, 4]
    source.calls.clear()
    sample(LoadedModel(source), ["one", "two"], steps=4, sampler="euler")
    assert source.calls == [2, 2, 2, 2]


def test_guidance_moves_away_from_the_negative():
    """The estimates are linear in the mean, so guidance is a mean of ``negative + cfg (mean - negative)``."""
    source = Source()
    guided = sample(LoadedModel(source), ["one"], negative="bad", cfg=1.5, steps=6, seed=1)
    MEANS["guided"] = -1.0 + 1.5 * (1.0 - -1.0)
    torch.testing.assert_close(guided, sample(LoadedModel(source), ["guided"], steps=6, seed=1))


def test_shift_moves_the_steps():
    plain = sample(LoadedModel(Source(shift=1.0)), ["one"], steps=3, sampler="euler")
    shifted = sample(LoadedModel(Source(shift=3.0)), ["one"], steps=3, sampler="euler")
    assert (plain - shifted).abs().max() > 1e-3


def test_the_watcher_sees_every_step_and_may_cancel():
    seen = []
    sample(LoadedModel(Source()), ["one"], steps=3, watch=lambda *args: seen.append(args))
    assert [(done, steps) for done, steps, _ in seen] == [(1, 3), (2, 3), (3, 3)]
    assert seen[0][2].shape == (1, 2, 4, 4)

    def cancel(*args):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(LoadedModel(Source()), ["one"], steps=3, watch=cancel)


def test_sampling_works_under_inference_mode():
    with torch.inference_mode():
        assert not sample(LoadedModel(Source()), ["one"], steps=1).is_inference()


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="prompts must name at least one picture"):
        sample(LoadedModel(Source()), [])
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        sample(LoadedModel(Source()), ["one"], steps=0)
