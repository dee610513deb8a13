"""Prompts drawn while a run trains on pairs or clips: each has the controls of a sample, as previews do."""

import pytest
import torch

from rollout_trainer.samplers import FlowSchedule
from rollout_trainer.training.data.dataset import Bucket, LatentDataset
from rollout_trainer.training.pictures.sampling import Drawing, Prompts

SEEN: list[dict] = []


class Source:
    """Encodes a prompt as its length; a latent pixel is 8 pixels."""

    device = torch.device("cpu")
    prediction = "flow"
    schedule = FlowSchedule(1.0)
    default_resolution = 64

    def latent_shape(self, height, width):
        return 4, height // 8, width // 8

    def encode_text(self, prompts):
        return {
            "cross_attn": torch.tensor([[[float(len(p))]] for p in prompts]),
            "guidance": torch.full((len(prompts),), 3.5),
        }


class Denoiser:
    """Sees what it is given."""

    def denoised(self, x, sigma, cond):
        SEEN.append({"shape": tuple(x.shape), **cond})
        return x * 0


def dataset(*shapes, **controls):
    """Two samples in each bucket; the controls of sample i of bucket b are 10 b + i."""
    buckets = []
    for b, shape in enumerate(shapes):
        own = torch.tensor([10.0 * b, 10.0 * b + 1])
        cond = {"cross_attn": torch.ones(2, 1, 1), "guidance": torch.ones(2)}
        cond |= {name: own.view(2, *[1] * len(size)).expand(2, *size) for name, size in controls.items()}
        one = torch.ones(2, dtype=torch.long)
        buckets.append(Bucket(torch.zeros(2, *shape), cond, None, one, ("a", "b"), ("a", "b")))
    return LatentDataset(tuple(buckets), {}, "f")


def drawn(data, prompts=("a", "bb", "ccc"), **sizes):
    """What the network saw first."""
    SEEN.clear()
    Drawing(Source(), Prompts(prompts, "no", steps=1, sampler="euler", order=1, cfg=2.0, **sizes), data).draw(
        Denoiser()
    )
    return SEEN[0]


def test_prompts_have_the_controls_of_the_first_samples_in_turn_in_their_size():
    seen = drawn(dataset((4, 6, 10), (4, 8, 8), **{"reference_latents/0": (4, 5, 5)}))
    assert seen["shape"] == (6, 4, 6, 10)  # both halves of guidance
    assert seen["reference_latents/0"][:, 0, 0, 0].tolist() == [0.0, 1.0, 0.0] * 2
    assert seen["cross_attn"].flatten().tolist() == [1.0, 2.0, 3.0, 2.0, 2.0, 2.0]
    assert seen["guidance"].tolist() == [3.5] * 6  # the prompt's own


def test_references_go_with_any_size_and_other_controls_with_a_size_of_the_data():
    data = dataset((4, 6, 10), (4, 8, 8), **{"reference_latents/0": (4, 5, 5)})
    assert drawn(data, width=64, height=64)["reference_latents/0"][0, 0, 0, 0] == 10.0
    seen = drawn(data, width=32, height=32)
    assert (seen["shape"][1:], float(seen["reference_latents/0"][0, 0, 0, 0])) == ((4, 4, 4), 0.0)
    masked = dataset((4, 6, 10), (4, 8, 8), concat_latent_image=(4, 1, 1))
    assert drawn(masked, width=64, height=64)["concat_latent_image"][0, 0, 0, 0] == 10.0
    with pytest.raises(
        ValueError, match="width and height of Sample Prompts must be 0 or a size that the data"
    ):
        drawn(masked, width=32, height=32)


def test_without_controls_prompts_are_drawn_as_without_data():
    plain, alone = drawn(dataset((4, 6, 10))), drawn(None)
    assert plain.keys() == alone.keys()
    assert plain["shape"] == alone["shape"] == (6, 4, 8, 8)
    assert all(torch.equal(plain[name], alone[name]) for name in alone if name != "shape")
