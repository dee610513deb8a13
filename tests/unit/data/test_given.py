"""Pictures that other nodes give, and the contact sheet."""

import numpy as np
import pytest
import torch
from PIL import Image
from standin import Model, held, picture

from rollout_trainer.training.data.encoding import samples_shown
from rollout_trainer.training.data.folders import read_image_folder
from rollout_trainer.training.data.given import dataset_from_images
from rollout_trainer.training.data.sheet import GAP, SIDE, Shown, contact_sheet, spread


def test_given_pictures_are_encoded_as_the_same_files_are(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    (tmp_path / "set").mkdir()
    for i, array in enumerate(pixels):
        Image.fromarray(array).save(tmp_path / "set" / f"{i}.png")
        (tmp_path / "set" / f"{i}.txt").write_text(f"number {i}")
    given = dataset_from_images(
        list(torch.from_numpy(pixels).float() / 255), ["number 0", "number 1"], None, tmp_path / "kept"
    )
    bucket, files = (held(d, Model()).buckets[0] for d in (given, read_image_folder(tmp_path / "set")))
    assert torch.equal(bucket.latents, files.latents)
    assert torch.equal(bucket.cond["context"], files.cond["context"])
    assert given.summary().startswith("2 pictures, 2 samples an epoch")


def test_what_was_given_once_is_encoded_once(tmp_path):
    images = [torch.full((64, 32, 3), 0.5), torch.full((64, 32, 4), 0.25)]
    for expected in (2, 0):
        dataset = dataset_from_images(images, ["x"], None, tmp_path / "kept", "sks", 3)
        model = Model()
        data = held(dataset, model, cache_dir=tmp_path / "cache")
        assert model.images == expected
    assert data.samples_per_epoch == 6
    assert data.buckets[0].captions == ("sks, x", "sks, x")
    assert not list((tmp_path / "kept").glob("*.tmp*"))


def test_masks_go_with_their_pictures_and_black_ones_leave_them_out(tmp_path):
    masks = [torch.zeros(64, 64), torch.ones(64, 64)]
    masks[1][:, :32] = 0
    dataset = dataset_from_images([torch.ones(64, 64, 3)] * 2, ["x"], masks, tmp_path)
    assert dataset.skipped == ("picture 0: it is left out, as its mask is all black",)
    bucket = held(dataset, Model()).buckets[0]
    assert bucket.masks[0, 0, 0].tolist() == [0] * 4 + [1] * 4


@pytest.mark.parametrize(
    ("images", "texts", "masks", "line"),
    [
        (0, ["x"], None, "images must hold at least one picture, got none"),
        (3, ["x", "y"], None, "texts must be one for all or one for each of 3 pictures, got 2"),
        (3, ["x"], 2, "masks must be one for all or one for each of 3 pictures, got 2"),
        (1, ["x"], 1, "images must hold a picture that is trained on, but picture 0"),
    ],
)
def test_lists_that_do_not_go_together_are_refused(tmp_path, images, texts, masks, line):
    given = None if masks is None else [torch.zeros(8, 8)] * masks
    with pytest.raises(ValueError, match=line):
        dataset_from_images([torch.ones(8, 8, 3)] * images, texts, given, tmp_path)


# --- the contact sheet ------------------------------------------------------------------------------


def test_the_sheet_shows_the_crop_that_is_trained(tmp_path):
    image = Image.new("RGB", (192, 64), "black")
    image.paste("white", (64, 0, 128, 64))  # the centre, which is all that a square crop keeps
    image.save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a caption")
    dataset = read_image_folder(tmp_path)
    (sample,) = samples_shown(dataset, Model(), max_aspect=1.0)
    assert sample.pictures[0].min() == 1
    assert sample.title == "a.png  64x64"
    (wide,) = samples_shown(dataset, Model(), 128, max_aspect=8.0, bucket_step=8)
    assert wide.pictures[0].shape[-1] > 2 * wide.pictures[0].shape[-2]
    assert wide.pictures[0].min() == 0
    sheet = contact_sheet([sample])
    assert sheet.shape[0] == 1
    assert (sheet[0, 12:SIDE, 12:SIDE] == 1).all()


def test_parts_that_are_not_trained_are_red(tmp_path):
    picture(tmp_path / "a.png", colour=(0, 0, 0))
    mask = Image.new("L", (64, 64), 255)
    mask.paste(0, (0, 0, 32, 64))
    mask.save(tmp_path / "a.mask.png")
    sheet = contact_sheet(samples_shown(read_image_folder(tmp_path), Model()))[0]
    left, right = sheet[60, 40], sheet[60, 160]
    assert left[0] > 0.5
    assert left[1] < 0.2
    assert (right < 0.05).all()


def test_a_large_set_is_shown_in_equal_distances(tmp_path):
    assert spread(100, 5) == [0, 25, 50, 74, 99]
    assert spread(3, 24) == [0, 1, 2]
    for i in range(30):
        picture(tmp_path / f"{i:02d}.png", (8, 8))
    shown = samples_shown(read_image_folder(tmp_path), Model(), most=24)
    assert len(shown) == 24
    assert shown[0].title.startswith("00.png")
    assert shown[-1].title.startswith("29.png")


def test_samples_of_several_pictures_have_fewer_columns():
    plain = Shown((torch.zeros(3, 64, 64),), None, "a", "b")
    wide = Shown((torch.zeros(3, 64, 64),) * 3, None, "a", "b")
    assert contact_sheet([plain] * 12).shape[2] == 6 * (SIDE + GAP) + GAP
    assert contact_sheet([wide] * 12).shape[2] == 2 * (3 * SIDE + 4 + GAP) + GAP
    assert contact_sheet([wide]).shape[2] == 3 * SIDE + 4 + 2 * GAP
