"""Pairs: pictures with controls, which stay with their sample whatever happens to its caption."""

from dataclasses import replace

import pytest
import torch
from standin import Model, picture

from rollout_trainer.training.conditioning import separated as rows
from rollout_trainer.training.data.encoding import encode, samples_shown
from rollout_trainer.training.data.folders import read_image_folder
from rollout_trainer.training.data.order import BatchOrder
from rollout_trainer.training.objective.states import drop_captions


class Edit(Model):
    """Takes controls: a reference is its pixel means, a frame its first pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.controls = 0

    def encode_controls(self, controls, target):
        self.controls += 1
        out = {}
        for i, (_, pixels) in enumerate(c for c in controls if c[0] == "reference"):
            out[f"reference_latents/{i}"] = torch.nn.functional.avg_pool2d(pixels, 8)
        for role, pixels in controls:
            if role != "reference":
                assert pixels.shape == target.shape
                out["concat_latent_image"] = torch.nn.functional.avg_pool2d(pixels, 8)
        return out


@pytest.fixture
def pairs(tmp_path):
    """Four targets; references of two sizes for three of them, two for one; one that belongs to nothing."""
    for i in range(4):
        picture(tmp_path / "set" / f"{i}.png", colour=(i * 10, 0, 0), caption=f"edit {'x' * i}")
    picture(tmp_path / "before" / "0.png", colour=(0, 100, 0), caption=None)
    picture(tmp_path / "before" / "1.png", (128, 64), (0, 110, 0), caption=None)
    picture(tmp_path / "before" / "2.png", colour=(0, 120, 0), caption=None)
    picture(tmp_path / "before" / "2_1.png", colour=(0, 0, 130), caption=None)
    picture(tmp_path / "before" / "stray.png", caption=None)
    return tmp_path


def paired(place, role="reference", **options):
    return read_image_folder(place / "set", controls=[(place / "before", role)], **options)


def test_each_sample_has_its_own_controls_at_their_own_sizes(pairs):
    dataset = paired(pairs)
    assert [len(item.controls) for item in dataset.items] == [1, 1, 2, 0]
    assert dataset.skipped == (
        "before/stray.png: there is no picture of that name for this control",
        "3.png: it has no reference in before/ and is trained without",
    )
    data = encode(dataset, Edit(), cache_dir=pairs / "cache")
    own = rows(data.batch(torch.arange(4)).cond)
    assert [sorted(row) for row in own] == [
        ["context", "reference_latents/0"],
        ["context", "reference_latents/0"],
        ["context", "reference_latents/0", "reference_latents/1"],
        ["context"],
    ]
    assert own[0]["reference_latents/0"].shape == (1, 3, 8, 8)
    assert own[1]["reference_latents/0"].shape == (
        1,
        3,
        5,
        11,
    )  # its own shape, not more pixels than the target
    assert own[2]["reference_latents/1"][0, 2, 0, 0] == pytest.approx(130 / 255)


def test_batches_of_any_order_carry_them_and_caption_dropout_leaves_them(pairs):
    data = encode(paired(pairs), Edit(), cache_dir=pairs / "cache")
    turns = BatchOrder(data, 2, torch.Generator().manual_seed(0))
    for _ in range(12):
        batch = turns.next()
        turns.look_ahead()
        dropped = drop_captions(batch.cond, data.empty_cond, 1.0, torch.Generator())
        assert (dropped["context"] == 0).all()
        for i, row in zip(batch.ids.tolist(), rows(dropped), strict=True):
            shade = [row[name][0, :, 0, 0].max().item() * 255 for name in row if name.startswith("reference")]
            assert shade == pytest.approx([[100], [110], [120, 130], []][i])


def test_held_and_stored_pairs_are_the_same_bits(pairs):
    stored = encode(paired(pairs), Edit(), cache_dir=pairs / "cache", variants=2)
    held = stored.held()
    for ids in (torch.arange(4), torch.tensor([2, 0])):
        one, other = (rows(d.batch(ids).cond) for d in (stored, held))
        for a, b in zip(one, other, strict=True):
            assert a.keys() == b.keys()
            assert all(torch.equal(a[k], b[k]) for k in a)


def test_controls_are_encoded_once_and_part_of_the_fingerprint(pairs):
    model = Edit()
    first = encode(paired(pairs), model, cache_dir=pairs / "cache")
    assert model.controls == 3
    model = Edit()
    again = encode(paired(pairs), model, cache_dir=pairs / "cache")
    assert (model.controls, again.fingerprint) == (0, first.fingerprint)
    picture(pairs / "before" / "0.png", colour=(0, 0, 9), caption=None)
    model = Edit()
    changed = encode(paired(pairs), model, cache_dir=pairs / "cache")
    assert (model.controls, model.images) == (1, 0)
    assert changed.fingerprint != first.fingerprint
    assert encode(read_image_folder(pairs / "set"), Edit()).fingerprint != first.fingerprint


def test_mirror_images_have_mirrored_controls(pairs):
    from PIL import Image

    image = Image.new("RGB", (64, 64))
    image.paste("white", (0, 0, 32, 64))
    image.save(pairs / "before" / "0.png")
    data = encode(paired(pairs), Edit(), flip=True)
    plain, mirrored = (rows(data.batch(torch.tensor([i])).cond)[0]["reference_latents/0"] for i in (0, 1))
    assert torch.equal(mirrored, plain.flip(-1))
    assert not torch.equal(mirrored, plain)


def test_a_frame_must_have_its_targets_shape_and_the_rest_goes_on(pairs):
    dataset = paired(pairs, "start frame")
    assert [item.path.name for item in dataset.items] == ["0.png", "2.png", "3.png"]
    assert (
        "1.png: it is left out, as its start frame 1.png is 128x64, not of the shape of 64x64"
        in dataset.skipped
    )
    cond = encode(dataset, Edit()).batch(torch.tensor([0])).cond
    assert cond["concat_latent_image"].shape == (1, 3, 8, 8)


def test_a_control_that_cannot_be_read_leaves_its_picture_out(pairs):
    (pairs / "before" / "0.png").write_bytes(b"broken")
    dataset = paired(pairs)
    assert [item.path.name for item in dataset.items] == ["1.png", "2.png", "3.png"]
    assert any(
        line.startswith("0.png: it is left out, as its control 0.png cannot") for line in dataset.skipped
    )


def test_controls_for_a_family_that_takes_none_are_refused_in_one_line(pairs):
    with pytest.raises(
        ValueError, match="control folders must be left out for stand-in, which takes no controls"
    ):
        encode(paired(pairs), Model())


def test_a_control_folder_that_is_not_there_is_named(pairs):
    with pytest.raises(ValueError, match=r"control folder .*gone: it must exist"):
        read_image_folder(pairs / "set", controls=[(pairs / "gone", "reference")])


def test_the_sheet_shows_controls_beside_their_target(pairs):
    shown = samples_shown(paired(pairs), Edit())
    assert [len(sample.pictures) for sample in shown] == [2, 2, 3, 1]


class Reader(Edit):
    """Its text encoder looks at references: conditioning is the caption's length and the brightest of each."""

    reads_pictures = True

    def __init__(self) -> None:
        super().__init__()
        self.read = []

    def encode_text_beside(self, caption, pictures):
        self.read.append(caption)
        return {"context": torch.tensor([[float(len(caption)), *(p.max().item() * 255 for p in pictures)]])}

    def encode_text(self, captions):
        return {"context": torch.tensor([[float(len(c))] for c in captions])}


def test_captions_are_read_beside_their_pictures_and_kept_by_both(pairs):
    for i in range(4):
        (pairs / "set" / f"{i}.txt").write_text("the same")
    model = Reader()
    data = encode(paired(pairs), model, cache_dir=pairs / "cache")
    own = [row["context"][0].tolist() for row in rows(data.batch(torch.arange(4)).cond)]
    assert own == [[8, 100], [8, 110], [8, 120, 130], [8]]
    assert [bucket.captions for bucket in data.buckets] == [("the same",) * 4]
    model = Reader()
    assert encode(paired(pairs), model, cache_dir=pairs / "cache").fingerprint == data.fingerprint
    assert not model.read
    picture(pairs / "before" / "0.png", colour=(0, 9, 0), caption=None)
    model = Reader()
    changed = encode(paired(pairs), model, cache_dir=pairs / "cache")
    assert model.read == ["the same"]
    assert rows(changed.batch(torch.tensor([0])).cond)[0]["context"].tolist() == [[8, 9]]


def test_without_references_captions_are_read_alone_and_once(pairs):
    model = Reader()
    encode(read_image_folder(pairs / "set"), model)
    assert not model.read


class Weighing(Model):
    """Makes twice the caption's length of one whose brackets weigh words."""

    def encode_text(self, captions):
        return {"context": torch.tensor([[2.0 * len(c)] for c in captions])}

    def encode_unweighted(self, captions):
        return {"context": torch.tensor([[1.0 * len(c)] for c in captions])}


def test_brackets_in_captions_weigh_words_only_where_that_is_wanted(tmp_path):
    for i, caption in enumerate(("plain", "miku (vocaloid)")):
        picture(tmp_path / "set" / f"{i}.png", caption=caption)
    dataset, prints = read_image_folder(tmp_path / "set"), []
    for weights, expected in ((False, [10, 15]), (True, [10, 30]), (False, [10, 15])):
        data = encode(dataset, Weighing(), cache_dir=tmp_path / "cache", caption_weights=weights)
        assert data.batch(torch.arange(2)).cond["context"].flatten().tolist() == expected
        prints.append(data.fingerprint)
    assert prints[0] == prints[2] != prints[1]
    with pytest.raises(
        ValueError, match="caption_weights must be off for stand-in, which takes brackets as text"
    ):
        encode(dataset, Model(), caption_weights=True)


def test_samples_that_are_held_out_take_their_controls_along(pairs):
    data = encode(paired(pairs), Edit())
    part = replace(data, buckets=(data.buckets[0].part(torch.tensor([2, 3])),))
    own = rows(part.batch(torch.tensor([0, 1])).cond)
    assert [len(row) for row in own] == [3, 1]
