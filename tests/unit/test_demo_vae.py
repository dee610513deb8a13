"""The analytic autoencoder: as good as the linear code it is written from, at every size it promises."""

import pytest
import torch

pytest.importorskip("diffusers")

from rollout_trainer.demo.make.latents import CHANNELS, PATCH, PatchCode
from rollout_trainer.demo.make.vae import LATENT_SCALE, build_vae

WIDTH = 3 * PATCH**2


@pytest.fixture(scope="module")
def code() -> PatchCode:
    """Smooth random patches: their code has rank 16, as a real one has."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(CHANNELS, 3, 3, 3, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, PATCH, mode="bilinear").flatten(1)
    basis = torch.linalg.qr(smooth.T.double()).Q.T.float()  # [16, 192], orthonormal rows
    return PatchCode(basis / 3, basis.T * 3, torch.zeros(WIDTH))


@pytest.fixture(scope="module")
def latents() -> torch.Tensor:
    return torch.randn(8, CHANNELS, 16, 16, generator=torch.Generator().manual_seed(1)) * 0.3


def test_encoding_is_the_linear_code(code, latents):
    vae = build_vae(code, latents)
    pixels = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found = vae.encode(pixels * 2 - 1).latents / LATENT_SCALE
    torch.testing.assert_close(found, code.encode(pixels), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (16, 16), (19, 19), (5, 19)])
def test_decoding_is_the_linear_code_up_to_152_pixels(code, latents, size):
    vae = build_vae(code, latents)
    z = latents[:1].repeat(1, 1, 2, 2)[:, :, : size[0], : size[1]]
    with torch.no_grad():
        found = (vae.decode(z * LATENT_SCALE).sample + 1) / 2
    error = (found - code.decode(z)).square().mean()
    assert -10 * error.log10() > 40  # dB; a single wrong quadrant costs 20


def test_decoding_fails_beyond_as_documented(code, latents):
    vae = build_vae(code, latents)
    z = latents[:1].repeat(1, 1, 2, 2)[:, :, :24, :24]
    with torch.no_grad():
        found = (vae.decode(z * LATENT_SCALE).sample + 1) / 2
    middle = slice(10 * PATCH, 14 * PATCH)
    error = (found - code.decode(z)).square()[:, :, middle, middle].mean()
    assert -10 * error.log10() < 30
