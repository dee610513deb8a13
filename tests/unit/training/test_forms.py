"""Conversions between prediction forms are exact and invert each other."""

import pytest
import torch

from rollout_trainer.training import forms as denoiser


@pytest.mark.parametrize("prediction", ["flow", "epsilon", "v"])
def test_perfect_prediction_recovers_data_and_velocity(prediction):
    x0, noise = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigma = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64) * (1 if prediction == "flow" else 10)
    x = denoiser.add_noise(prediction, x0, noise, sigma)
    velocity = denoiser.true_velocity(prediction, x0, noise)
    output = denoiser.from_velocity(prediction, x, sigma, velocity)

    torch.testing.assert_close(denoiser.to_velocity(prediction, x, sigma, output), velocity)
    torch.testing.assert_close(denoiser.to_denoised(prediction, x, sigma, output), x0)
    if prediction == "v":
        s = denoiser.expand(sigma, x)
        torch.testing.assert_close(output, (noise - s * x0) / (1 + s**2).sqrt())
