"""The exposure-bias measure: nothing for a perfect model, what is there for a biased one."""

from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from rollout_trainer.samplers import FlowSchedule
from rollout_trainer.training.data.dataset import Bucket, LatentDataset
from rollout_trainer.training.forms import expand
from rollout_trainer.training.models.source import Denoiser
from rollout_trainer.training.pictures.exposure import BANDS, energy_distance, exposure_bias, radial_power

M, S = 0.5, 0.8  # data N(M, S^2) per element


class Exact(Denoiser):
    """The exact velocity of Gaussian data, times `gain`, as model and source in one."""

    prediction = "flow"
    schedule = FlowSchedule(1.0)
    device = torch.device("cpu")

    def __init__(self, gain=1.0):
        self.gain = gain
        self.source = self

    @contextmanager
    def denoiser(self, dtype=None):
        yield self

    def predict(self, x, sigma, cond):
        s = expand(sigma, x)
        gain = (1 - s) * S**2 / (((1 - s) * S) ** 2 + s**2)
        denoised = M + gain * (x - (1 - s) * M)
        return self.gain * (x - denoised) / s


def data(n=256):
    g = torch.Generator().manual_seed(0)
    latents = M + S * torch.randn(n, 2, 4, 4, generator=g)
    cond = {"context": torch.zeros(n, 1, 1)}
    bucket = Bucket(latents, cond, None, torch.ones(n, dtype=torch.long), ("",) * n, ("",) * n)
    return LatentDataset((bucket,), {"context": torch.zeros(1, 1, 1)}, "gaussian")


def test_a_perfect_model_has_none():
    """Paired drift would be large here; unpaired there is no difference but chance."""
    bias = exposure_bias(Exact(), data(), samples=256, steps=80, sampler="unipc")
    assert bias.energy.abs().max() < 0.01
    assert bias.energy_floor.abs().max() < 0.01
    torch.testing.assert_close(bias.power, torch.ones(81), atol=0.06, rtol=0)
    torch.testing.assert_close(bias.prediction, torch.ones(80), atol=0.06, rtol=0)
    present = bias.spectrum.mean(0)
    present = present[present.isfinite()]
    assert len(present) >= 4
    torch.testing.assert_close(present, torch.ones(len(present)), atol=0.12, rtol=0)


def test_a_biased_model_shows_where_it_leaves():
    """Too small a velocity leaves noise behind: power grows towards the picture."""
    bias = exposure_bias(Exact(gain=0.8), data(), samples=128, steps=20)
    assert bias.energy[0].abs() < 0.02  # it starts from the same noise
    assert bias.energy[-1] > 10 * bias.energy_floor[-1].abs()
    assert bias.energy[-1] > bias.energy[10] > bias.energy[2]
    assert bias.prediction.shape == (20,)


class Blurred(Exact):
    """Exact for data that have half the standard deviation in the upper half of the bands."""

    def predict(self, x, sigma, cond):
        s = expand(sigma, x)
        fy, fx = torch.fft.fftfreq(x.shape[-2])[:, None], torch.fft.fftfreq(x.shape[-1])
        fine = (fy**2 + fx**2).sqrt() / 0.5**0.5 >= 0.5
        variance = torch.where(fine, S**2 / 4, S**2)
        gain = (1 - s) * variance / ((1 - s) ** 2 * variance + s**2)
        denoised = torch.fft.ifft2(gain * torch.fft.fft2(x)).real
        return (x - denoised) / s


def test_the_spectrum_says_which_detail_is_missing():
    """Data N(0, S^2) at every frequency; a model of blurred data has (1-s)^2 S'^2 + s^2 at each."""
    g = torch.Generator().manual_seed(0)
    n = 128
    bucket = replace(data(n).buckets[0], latents=S * torch.randn(n, 2, 16, 16, generator=g))
    white = replace(data(), buckets=(bucket,))
    bias = exposure_bias(Blurred(), white, samples=n, steps=40, sampler="unipc")
    s = bias.sigmas[:, None].float()
    kept = torch.where(torch.arange(BANDS) < BANDS // 2, 1.0, 0.25) * S**2
    expected = ((1 - s) ** 2 * kept + s**2) / ((1 - s) ** 2 * S**2 + s**2)  # 1 .. 1/4 at the picture
    torch.testing.assert_close(bias.spectrum, expected, atol=0, rtol=0.1)
    facts = bias.summary()
    assert facts["frequency"] == [(k + 0.5) / 8 for k in range(8)]
    assert len(facts["spectrum"]) == len(facts["sigma"]) == 41


def test_latents_of_videos_have_a_spectrum_too():
    noise = torch.randn(16, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(radial_power(noise), torch.ones(BANDS), atol=0.1, rtol=0)


def test_coarse_steps_show_as_bias_too():
    fine, coarse = (exposure_bias(Exact(), data(), samples=256, steps=n).energy[-1] for n in (40, 3))
    assert coarse > 3 * fine.abs()


def test_energy_distance_by_hand():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2000, 1, generator=g), 1 + torch.randn(2000, 1, generator=g)
    # N(0, 1) against N(1, 1): 2 E|N(1, 2)| - 2 E|N(0, 2)| = 2 (1.399 - 1.128)
    assert energy_distance(a, b) == pytest.approx(2 * (1.3995 - 1.1284), abs=0.06)
    assert energy_distance(a, torch.randn(2000, 1, generator=g)).abs() < 0.01


def test_radial_power_finds_the_band():
    y = torch.arange(16).float()
    flat, fine = torch.ones(1, 1, 16, 16), torch.cos(torch.pi * y)[None, None, :, None].expand(1, 1, 16, 16)
    assert radial_power(flat).argmax() == 0
    assert radial_power(fine).argmax() == int(0.5 / 0.5**0.5 * BANDS)
    noise = torch.randn(64, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(radial_power(noise), torch.ones(BANDS), atol=0.1, rtol=0)


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="samples must be at least 2"):
        exposure_bias(SimpleNamespace(source=None), data(), samples=1)
