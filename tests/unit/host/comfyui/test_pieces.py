"""Long clips in pieces: what an autoencoder that looks back some frames makes of them, and how much it gets at once."""

import pytest
import torch

from rollout_trainer.host.comfyui.pieces import BEFORE, PIECE, WHOLE, Made, encoded


class Causal:
    """A latent frame is the mean of the `step` frames that end with its own, and of `back` frames before those."""

    def __init__(self, step: int, back: int) -> None:
        self.step, self.back = step, back
        self.lengths: list[int] = []

    def __call__(self, frames):
        self.lengths.append(len(frames))
        padded = torch.cat([frames[:1].expand(self.step + self.back - 1, -1, -1, -1), frames])
        ends = range(self.step + self.back, len(padded) + 1, self.step)
        means = [padded[end - self.step - self.back : end].mean(0) for end in ends]
        return torch.stack(means).permute(3, 0, 1, 2)[None]  # [1, C, f, h, w]


def clip(count):
    return torch.randn(count, 2, 2, 3, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("step", [4, 6, 8])
@pytest.mark.parametrize("pieces", [0, 1, 2, 9, 40])
def test_pieces_give_what_the_whole_gives_and_are_never_longer_than_one(step, pieces):
    count = WHOLE if not pieces else 1 + 24 * (WHOLE // 24 + pieces)
    frames, vae = clip(count), Causal(step, BEFORE // step * step - step)
    whole = Causal(step, BEFORE // step * step - step)(frames)
    found = encoded(frames, vae)
    assert found.shape == whole.shape
    assert torch.equal(found, whole)
    assert vae.lengths == [count] if count <= WHOLE else max(vae.lengths) == PIECE


def test_a_clip_that_fits_is_given_as_it_is():
    frames = clip(WHOLE)
    assert encoded(frames, lambda given: given[None]).data_ptr() == frames.data_ptr()


def test_parts_are_made_as_they_are_asked_for():
    made, asked = clip(241), []

    def make(first, last):
        asked.append((first, last))
        return made[first:last]

    found = encoded(Made(made.shape, make), Causal(4, 4))
    assert torch.equal(found, Causal(4, 4)(made))
    assert asked == [(0, 121), (76, 197), (152, 241)]
