"""From pictures to batches. The model is a stand-in whose latents are pixel means: every number can be foretold."""

import itertools
import logging
import os
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from standin import Model, held, picture

from rollout_trainer.training.data.cache import TensorCache, cache_key
from rollout_trainer.training.data.captions import caption_variants
from rollout_trainer.training.data.dataset import Bucket, LatentDataset, read_image_folder
from rollout_trainer.training.data.encoding import encode
from rollout_trainer.training.data.images import bucket_sizes, nearest_bucket
from rollout_trainer.training.data.order import BatchOrder

# --- tags in other orders ---------------------------------------------------------------------------


def test_variants_are_the_same_tags_behind_those_that_stay():
    own = caption_variants("blob,  red, round , happy, big,", 40, keep_tags=1)
    assert own[0] == "blob,  red, round , happy, big,"  # as written
    assert all(v.startswith("blob, ") for v in own)
    assert {tuple(sorted(v.split(", "))) for v in own[1:]} == {("big", "blob", "happy", "red", "round")}
    assert len(set(own)) > 15  # of 24 orders
    assert own == caption_variants(own[0], 40, keep_tags=1)  # of the caption alone
    assert own[:5] == caption_variants(
        own[0], 5, keep_tags=1
    )  # more of them leave the first ones as they are


@pytest.mark.parametrize(("caption", "keep"), [("", 0), ("a sentence", 0), ("x, y", 1), ("x, y, z", 9)])
def test_captions_with_nothing_to_shuffle_stay_as_written(caption, keep):
    assert caption_variants(caption, 3, keep) == [caption] * 3


def test_no_variants_is_the_dataset_as_ever(tmp_path):
    picture(tmp_path / "a.png", caption="x, y, z")
    data = encode(read_image_folder(tmp_path), model := Model())
    assert model.captions == ["x, y, z", ""]
    assert data.fingerprint == encode(read_image_folder(tmp_path), Model(), keep_tags=3).fingerprint
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    data.batch(torch.tensor([0]), generator)
    assert torch.equal(generator.get_state(), before)  # off draws nothing


def test_each_draw_is_one_of_a_pictures_own_variants(tmp_path):
    for i in range(3):
        picture(tmp_path / f"{i}.png", caption=f"t{i}, {'a' * (i + 1)}, b, c")
    model = Model()
    model.encode_text = lambda captions: {"context": torch.tensor([[float(numbers[c])] for c in captions])}
    dataset = read_image_folder(tmp_path)
    texts = [caption_variants(item.caption, 4, 1) for item in dataset.items]
    numbers = {text: i for i, text in enumerate(dict.fromkeys([""] + [t for own in texts for t in own]))}
    data = encode(dataset, model, variants=4)
    assert len(data) == 3
    assert data.fingerprint != encode(dataset, Model()).fingerprint
    assert data.fingerprint != encode(dataset, Model(), variants=4, keep_tags=0).fingerprint
    ids, generator = torch.tensor([2, 0, 1]), torch.Generator().manual_seed(0)
    drawn = torch.cat([data.batch(ids, generator).cond["context"] for _ in range(50)], 1)  # [3, 50]
    for row, i in zip(drawn.tolist(), ids.tolist(), strict=True):
        assert set(row) == {numbers[text] for text in texts[i]}
    assert data.batch(ids).cond["context"][:, 0].tolist() == [numbers[texts[i][0]] for i in ids.tolist()]


def test_variants_are_encoded_once(tmp_path):
    picture(tmp_path / "a.png", caption="x, y, z, w")
    dataset, cache = read_image_folder(tmp_path), tmp_path / "cache"
    first = held(dataset, model := Model(), cache_dir=cache, variants=5)
    assert len(model.captions) == len({*caption_variants("x, y, z, w", 5, 1), ""})
    again = held(dataset, other := Model(), cache_dir=cache, variants=5)
    assert other.captions == []
    assert torch.equal(first.buckets[0].cond["context"], again.buckets[0].cond["context"])


# --- folders ---------------------------------------------------------------------------------------


def test_pictures_of_all_kinds_are_read_in_the_order_of_their_names(tmp_path):
    (tmp_path / "._a.png").write_bytes(b"what macOS leaves on foreign disks")
    for name in ("d.bmp", "a.png", "c.webp", "b.JPG", "e.jpeg"):
        picture(tmp_path / name, caption=f"this is {name[0]}\n")
    dataset = read_image_folder(tmp_path)
    assert [item.path.name for item in dataset.items] == ["a.png", "b.JPG", "c.webp", "d.bmp", "e.jpeg"]
    assert [item.caption for item in dataset.items] == [f"this is {c}" for c in "abcde"]
    assert dataset.skipped == ()


def test_kohya_folders_repeat_their_pictures(tmp_path):
    picture(tmp_path / "top.png")
    picture(tmp_path / "3_cat" / "x.png", caption="cat")
    picture(tmp_path / "10_dog" / "x.png", caption="dog")
    dataset = read_image_folder(tmp_path)
    assert [(item.caption, item.repeats) for item in dataset.items] == [
        ("a caption", 1),
        ("dog", 10),
        ("cat", 3),
    ]
    assert "3 pictures, 14 samples an epoch" in dataset.summary()


def test_what_is_left_out_is_named(tmp_path):
    picture(tmp_path / "good.png")
    picture(tmp_path / "old" / "x.png")
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    (tmp_path / "bad.txt").write_text("of the bad picture")
    (tmp_path / "notes.txt").write_text("of no picture")
    dataset = read_image_folder(tmp_path)
    assert [item.path.name for item in dataset.items] == ["good.png"]
    assert dataset.skipped == (
        "notes.txt: there is no picture of that name",
        "old/: its pictures are not read; name it N_old to have them N times an epoch, or switch subfolders on",
        dataset.skipped[2],
    )
    assert dataset.skipped[2].startswith("bad.png: it cannot be read as a picture (")
    assert dataset.summary().count("\n") == 4


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.webp"])
def test_a_picture_that_is_cut_off_is_left_out(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    (tmp_path / "x.txt").write_text("x")
    picture(tmp_path / "good.png")
    dataset = read_image_folder(tmp_path)
    assert len(dataset.items) == 1
    assert name in dataset.skipped[0]


def empty(folder):
    folder.mkdir()


def only_captions(folder):
    folder.mkdir()
    (folder / "x.txt").write_text("x")


def only_broken(folder):
    only_captions(folder)
    (folder / "x.png").write_bytes(b"")


def no_caption(folder):
    picture(folder / "a.png", caption=None)
    picture(folder / "b.png", caption=None)
    picture(folder / "c.png")


def latin_caption(folder):
    picture(folder / "a.png")
    (folder / "a.txt").write_bytes("Bär".encode("latin-1"))


@pytest.mark.parametrize(
    ("build", "line"),
    [
        (lambda folder: None, "it must exist, but there is no such folder"),
        (
            empty,
            "it must hold pictures or clips (png, jpg, jpeg, jpe, jfif, webp, bmp, gif, avif, tif, tiff, mp4, m4v, "
            "mov, webm, mkv, avi), but it has none",
        ),
        (only_captions, "none is usable: x.txt: there is no picture of that name"),
        (only_broken, "none is usable: x.png: it cannot be read as a picture"),
        (no_caption, "a.png must have a caption file a.txt (2 pictures have none)"),
        (latin_caption, "none is usable: a.txt: its picture is left out (it must be UTF-8 text"),
    ],
    ids=["missing", "empty", "captions", "broken", "no caption", "latin"],
)
def test_an_unusable_folder_gives_one_line_that_names_it(tmp_path, build, line):
    build(tmp_path / "set")
    with pytest.raises(ValueError, match=r"(dataset folder|caption) .*set") as caught:
        read_image_folder(tmp_path / "set")
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_default_caption_and_trigger_word(tmp_path):
    picture(tmp_path / "a.png", caption=None)
    picture(tmp_path / "b.png", caption="a sks cat")
    picture(tmp_path / "c.png", caption="")
    captions = [item.caption for item in read_image_folder(tmp_path, "a thing", trigger="sks").items]
    assert captions == ["sks, a thing", "a sks cat", "sks"]


# --- pictures --------------------------------------------------------------------------------------


def latent(tmp_path, model=None, **options):
    """The latent [3, h, w] of the one picture in a folder."""
    return held(read_image_folder(tmp_path), model or Model(), **options).buckets[0].latents[0]


def test_pixels_reach_the_model_in_0_to_1(tmp_path):
    picture(tmp_path / "a.png", colour=(255, 0, 51))
    torch.testing.assert_close(latent(tmp_path)[:, 3, 3], torch.tensor([1.0, 0.0, 0.2]))


def test_transparent_parts_are_white(tmp_path):
    picture(tmp_path / "a.png", colour=(255, 0, 0, 0))
    assert (latent(tmp_path) == 1).all()


def test_palette_transparency_and_16_bit_grey(tmp_path):
    image = Image.new("P", (64, 64), 0)
    image.putpalette([255, 0, 0])
    image.save(tmp_path / "a.png", transparency=0)
    (tmp_path / "a.txt").write_text("x")
    assert (latent(tmp_path) == 1).all()
    Image.fromarray(np.full((64, 64), 32896, np.uint16)).save(tmp_path / "a.png")
    torch.testing.assert_close(latent(tmp_path), torch.full((3, 8, 8), 128 / 255))


def test_pictures_are_turned_upright(tmp_path):
    image = Image.new("RGB", (128, 64), "black")
    image.paste("white", (0, 0, 64, 64))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: the left half comes to the top
    image.save(tmp_path / "a.png", exif=exif)
    (tmp_path / "a.txt").write_text("x")
    item = read_image_folder(tmp_path).items[0]
    assert (item.width, item.height) == (64, 128)
    out = latent(tmp_path, resolution=96, bucket_step=8)
    assert out.shape == (3, 16, 9)
    assert out[:, 0].min() > 0.95
    assert out[:, -1].max() < 0.05


def test_resize_covers_and_crops_about_the_centre(tmp_path):
    image = Image.new("RGB", (192, 64), "black")
    image.paste("white", (64, 0, 128, 64))
    image.save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("x")
    assert latent(tmp_path, max_aspect=1.0).min() == 1


# --- buckets ---------------------------------------------------------------------------------------


def test_bucket_sizes_of_512():
    sizes = bucket_sizes(512, 64, 2.0)
    assert sizes == [(384, 640), (448, 576), (512, 512), (576, 448), (640, 384)]


@pytest.mark.parametrize(
    ("resolution", "step", "aspect"), list(itertools.product((64, 96, 512, 1024), (16, 64), (1, 2, 3)))
)
def test_bucket_sizes_keep_their_promises(resolution, step, aspect):
    sizes = bucket_sizes(resolution, step, aspect)
    assert (resolution, resolution) in sizes
    for width, height in sizes:
        assert width * height <= resolution**2
        assert max(width, height) <= aspect * min(width, height)
        assert (height, width) in sizes
        assert (width, height) == (resolution, resolution) or width % step == height % step == 0


def test_pictures_go_to_the_bucket_of_the_nearest_ratio():
    sizes = bucket_sizes(512, 64, 2.0)
    assert nearest_bucket(1000, 1000, sizes) == (512, 512)
    assert nearest_bucket(1920, 1080, sizes) == (640, 384)
    assert nearest_bucket(1080, 1920, sizes) == (384, 640)
    assert nearest_bucket(520, 500, sizes) == (512, 512)


def test_buckets_hold_what_is_theirs(tmp_path):
    picture(tmp_path / "a.png", (64, 64))
    picture(tmp_path / "2_b" / "b.png", (200, 100), caption="wide")
    picture(tmp_path / "c.png", (100, 100), caption="square")
    data = held(read_image_folder(tmp_path), Model(), 64, bucket_step=8)
    shapes = {bucket.names: tuple(bucket.latents.shape) for bucket in data.buckets}
    assert shapes == {("a.png", "c.png"): (2, 3, 8, 8), ("b.png",): (1, 3, 6, 10)}
    wide = next(bucket for bucket in data.buckets if bucket.names == ("b.png",))
    assert wide.repeats.tolist() == [2]
    assert wide.cond["context"].tolist() == [[4.0]]
    assert (len(data), data.samples_per_epoch) == (3, 4)
    assert data.empty_cond["context"].tolist() == [[0.0]]


def test_sizes_the_model_cannot_take_are_not_used(tmp_path):
    picture(tmp_path / "a.png", (400, 200))
    assert latent(tmp_path, resolution=256).shape == (3, 32, 32)  # 320 x 192 would be nearer
    with pytest.raises(ValueError, match="at most 256"):
        latent(tmp_path, resolution=320)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"bucket_step": 60}, "bucket_step must be a multiple of 8"),
        ({"max_aspect": 0.5}, "max_aspect must be at least 1"),
    ],
)
def test_bad_bucket_settings_are_refused(tmp_path, options, line):
    picture(tmp_path / "a.png")
    with pytest.raises(ValueError, match=line):
        latent(tmp_path, **options)


# --- masks and mirror images -----------------------------------------------------------------------


def half(path, size=(64, 64)):
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    mask.save(path)


def test_mask_files_are_fitted_to_the_latent(tmp_path):
    picture(tmp_path / "a.png")
    half(tmp_path / "a.mask.png", (32, 32))  # of another size than its picture
    picture(tmp_path / "b.png")
    bucket = held(read_image_folder(tmp_path), Model()).buckets[0]
    assert bucket.masks.shape == (2, 1, 8, 8)
    assert (bucket.masks[0, 0, :, :4] == 1).all()
    assert (bucket.masks[0, 0, :, 4:] == 0).all()
    assert (bucket.masks[1] == 1).all()  # no mask: everything counts


def test_alpha_masks_only_where_asked(tmp_path):
    picture(tmp_path / "a.png", colour=(255, 0, 0, 0))
    assert held(read_image_folder(tmp_path), Model()).buckets[0].masks is None
    assert (held(read_image_folder(tmp_path, alpha_masks=True), Model()).buckets[0].masks == 0).all()


def test_flip_adds_mirror_images_with_their_masks(tmp_path):
    half(tmp_path / "a.png")
    half(tmp_path / "a.mask.png")
    (tmp_path / "a.txt").write_text("x")
    bucket = held(read_image_folder(tmp_path), Model(), flip=True).buckets[0]
    assert bucket.names == ("a.png", "a.png (mirrored)")
    assert torch.equal(bucket.latents[1], bucket.latents[0].flip(-1))
    assert torch.equal(bucket.masks[1], bucket.masks[0].flip(-1))


# --- cache -----------------------------------------------------------------------------------------


def test_a_second_time_nothing_is_encoded(tmp_path):
    picture(tmp_path / "set" / "a.png", caption="one")
    picture(tmp_path / "set" / "b.png", caption="one", colour=(0, 0, 0))
    half(tmp_path / "set" / "a.mask.png")
    first, second = Model(), Model()
    a = held(read_image_folder(tmp_path / "set"), first, cache_dir=tmp_path / "cache")
    b = held(read_image_folder(tmp_path / "set"), second, cache_dir=tmp_path / "cache")
    assert (first.images, sorted(first.captions)) == (2, ["", "one"])
    assert (second.images, second.captions) == (0, [])
    assert torch.equal(a.buckets[0].latents, b.buckets[0].latents)
    assert torch.equal(a.buckets[0].masks, b.buckets[0].masks)
    assert a.fingerprint == b.fingerprint


def test_whatever_a_latent_depends_on_makes_it_anew(tmp_path):
    folder, cache = tmp_path / "set", tmp_path / "cache"

    def change(step):
        model, options, alpha = Model(), {}, False
        if step == "content":  # same name, size and time: only the bytes tell
            stat = (folder / "a.png").stat()
            picture(folder / "a.png", colour=(0, 0, 255))
            os.utime(folder / "a.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))
        elif step == "mask":
            half(folder / "a.mask.png")
        elif step == "resolution":
            options = {"resolution": 128}
        elif step == "flip":
            options = {"flip": True}
        elif step == "alpha":
            alpha = True
        elif step == "model":
            model = Model("another")
        elif step == "dtype":
            model.dtype = torch.bfloat16
        data = encode(read_image_folder(folder, alpha_masks=alpha), model, cache_dir=cache, **options)
        return model.images, data.fingerprint

    picture(folder / "a.png")
    assert change("nothing")[0] == 1
    fingerprints = [change("nothing")[1]]
    for step in ("content", "mask", "resolution", "flip", "alpha", "model", "dtype"):
        images, fingerprint = change(step)
        assert images == 1, step
        assert fingerprint not in fingerprints, step
        fingerprints.append(fingerprint)


def test_captions_and_repeats_are_part_of_the_fingerprint(tmp_path):
    picture(tmp_path / "2_a" / "a.png", caption="one")
    before = encode(read_image_folder(tmp_path), Model()).fingerprint
    picture(tmp_path / "2_a" / "a.png", caption="two")
    after = encode(read_image_folder(tmp_path), Model()).fingerprint
    (tmp_path / "2_a").rename(tmp_path / "3_a")
    assert len({before, after, encode(read_image_folder(tmp_path), Model()).fingerprint}) == 3


@pytest.mark.parametrize("spoil", ["cut", "empty", "altered", "foreign"])
def test_corrupt_cache_files_are_made_anew(tmp_path, spoil, caplog):
    cache, key = TensorCache(tmp_path), cache_key("x", 1)
    good = {"latent": torch.arange(6.0).reshape(2, 3), "half": torch.ones(2, dtype=torch.bfloat16)}
    cache.fetch(key, lambda: good)
    file = tmp_path / f"{key}.safetensors"
    data = file.read_bytes()
    if spoil == "altered":
        data = data[:-1] + bytes([data[-1] ^ 1])
    file.write_bytes({"cut": data[:-4], "empty": b"", "altered": data, "foreign": b"x" * 100}[spoil])
    made = []
    with caplog.at_level(logging.WARNING):
        again = cache.fetch(key, lambda: made.append(1) or good)
    assert made == [1]
    assert torch.equal(again["latent"], good["latent"])
    assert "made anew" in caplog.text
    assert cache.fetch(key, lambda: pytest.fail("it is there")).keys() == good.keys()
    assert [p.name for p in tmp_path.iterdir()] == [file.name]


def test_progress_counts_pictures_and_captions_and_may_cancel(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    seen = []
    encode(read_image_folder(tmp_path), Model(), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]

    def cancel(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode(read_image_folder(tmp_path), Model(), progress=cancel)


def test_what_is_encoded_under_inference_mode_can_be_trained_on(tmp_path):
    picture(tmp_path / "set" / "a.png")
    for _ in range(2):  # encoded, then from the cache
        with torch.inference_mode():
            data = encode(read_image_folder(tmp_path / "set"), Model(), cache_dir=tmp_path / "cache")
        batch = data.batch(torch.tensor([0]))
        tensors = [batch.x0, batch.cond["context"], data.empty_cond["context"]]
        assert not any(t.is_inference() for t in tensors)


def test_a_picture_that_vanished_is_named(tmp_path):
    picture(tmp_path / "a.png")
    dataset = read_image_folder(tmp_path)
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match=r"picture .*a\.png: it cannot be read any more"):
        encode(dataset, Model())


# --- batches ---------------------------------------------------------------------------------------


def dataset(sizes=(5,), repeats=None):
    """Buckets of the given sizes; a sample's latent and conditioning are its number."""
    buckets, start = [], 0
    for i, n in enumerate(sizes):
        numbers = torch.arange(start, start + n, dtype=torch.float32)
        latents = numbers.reshape(n, 1, 1, 1).expand(n, 1, 1, i + 1).contiguous()
        count = torch.ones(n, dtype=torch.long) if repeats is None else torch.tensor(repeats)
        names = tuple(f"{int(number)}.png" for number in numbers)
        buckets.append(Bucket(latents, {"context": numbers[:, None]}, None, count, names, names))
        start += n
    return LatentDataset(tuple(buckets), {"context": torch.zeros(1, 1)}, "x")


def order(data, batch_size, seed=0):
    return BatchOrder(data, batch_size, torch.Generator().manual_seed(seed))


def drawn(order, batches):
    return [order.next().ids.tolist() for _ in range(batches)]


def test_a_batch_holds_the_samples_it_names():
    data = dataset((3, 4))
    batch = data.batch(torch.tensor([5, 3]))
    assert batch.x0[:, 0, 0].tolist() == [[5.0, 5.0], [3.0, 3.0]]
    assert batch.cond["context"].tolist() == [[5.0], [3.0]]
    assert batch.mask is None
    with pytest.raises(ValueError, match="one bucket"):
        data.batch(torch.tensor([2, 3]))


def test_every_sample_comes_once_an_epoch():
    ids = drawn(order(dataset((6,)), 3), 20)
    for first, second in zip(ids[::2], ids[1::2], strict=True):
        assert sorted(first + second) == list(range(6))
    assert len({tuple(first) for first in ids[::2]}) > 5  # shuffled anew each time


def test_repeats_are_drawn_as_often_as_they_say():
    ids = drawn(order(dataset((3,), repeats=[1, 2, 3]), 2), 30)
    assert Counter(i for batch in ids for i in batch) == {0: 10, 1: 20, 2: 30}


@pytest.mark.parametrize(("sizes", "batch_size"), [((5,), 3), ((3,), 8), ((5, 1, 3), 2), ((2, 7), 16)])
def test_batches_are_whole_from_one_bucket_and_use_all_alike(sizes, batch_size):
    data = dataset(sizes)
    epochs = 4 * batch_size
    ids = drawn(order(data, batch_size), epochs * sum(sizes) // batch_size)
    assert {len(batch) for batch in ids} == {batch_size}
    for batch in ids:
        data.batch(torch.tensor(batch))  # raises if they are of several buckets
    counts = Counter(i for batch in ids for i in batch)
    assert set(counts.values()) == {epochs}


def test_the_order_is_the_generators():
    assert drawn(order(dataset(), 2, 1), 9) == drawn(order(dataset(), 2, 1), 9)
    assert drawn(order(dataset(), 2, 1), 9) != drawn(order(dataset(), 2, 2), 9)


@pytest.mark.parametrize("done", [0, 1, 2, 5, 7])
def test_going_on_from_a_state_is_going_on(done):
    data = dataset((5, 4), repeats=None)
    whole = order(data, 3)
    drawn(whole, done)
    state, stream = whole.state_dict(), whole.generator.get_state()
    expected = drawn(whole, 12)
    resumed = order(data, 3, seed=99)
    resumed.generator.set_state(stream)
    resumed.load_state_dict(state)
    assert drawn(resumed, 12) == expected
    assert resumed.epoch == whole.epoch


def test_states_of_other_runs_are_refused():
    state = order(dataset(), 2)
    state.next()
    with pytest.raises(ValueError, match="batch_size must be 2 as in the saved run, got 3"):
        order(dataset(), 3).load_state_dict(state.state_dict())
    with pytest.raises(ValueError, match="the dataset must be the saved run's, got one of 2 samples"):
        order(dataset((2,)), 2).load_state_dict(state.state_dict())
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        order(dataset(), 0)
