"""Data that is read from the cache when a batch asks for it: the same bits, in the same order, whatever happens."""

import gc
import os
import threading
import weakref

import pytest
import torch
from PIL import Image
from standin import Model, picture

from rollout_trainer.training.conditioning import joined
from rollout_trainer.training.data.cache import INDEX, TensorCache
from rollout_trainer.training.data.captions import caption_variants
from rollout_trainer.training.data.dataset import read_image_folder
from rollout_trainer.training.data.encoding import encode
from rollout_trainer.training.data.holdout import hold_out
from rollout_trainer.training.data.order import BatchOrder


class Words(Model):
    """Conditioning of one row for each word, and half precision."""

    dtype = torch.bfloat16

    def encode_images(self, pixels):
        return super().encode_images(pixels).bfloat16()

    def encode_text(self, captions):
        self.captions += captions
        (caption,) = captions
        rows = torch.tensor(
            [[float(len(word)), float(ord(word[0]))] for word in caption.split()] or [[0.0, 0.0]]
        )
        return {"context": rows[None].bfloat16(), "pooled": rows.mean(0, keepdim=True).bfloat16()}


@pytest.fixture
def folder(tmp_path):
    """Two sizes, masks, repeats, one caption twice, captions of several lengths."""
    place = tmp_path / "set"
    for i in range(4):
        picture(
            place / f"{i}.png",
            colour=(40 * i, 0, 0),
            caption="one two" if i < 2 else f"tag, b{i}, c, dd d{i}",
        )
    for i in range(3):
        picture(place / "2_wide" / f"w{i}.png", (128, 64), (0, 50 * i, 9), caption="x, y z")
    Image.new("L", (64, 64), 128).save(place / "1.mask.png")
    return place


def order(data, batch_size=2):
    return BatchOrder(data, batch_size, torch.Generator().manual_seed(1))


def same(a, b):
    assert torch.equal(a.x0, b.x0)
    assert a.x0.dtype == b.x0.dtype == torch.float32
    assert a.cond.keys() == b.cond.keys()
    assert all(torch.equal(a.cond[k], b.cond[k]) for k in a.cond)
    assert (a.mask is None) == (b.mask is None)
    assert a.mask is None or torch.equal(a.mask, b.mask)
    assert torch.equal(a.ids, b.ids)


def test_batches_from_the_disk_are_those_in_memory_bit_for_bit(tmp_path, folder):
    images = read_image_folder(folder)
    options = {"variants": 3, "bucket_step": 8, "flip": True}
    stored = encode(images, Words(), cache_dir=tmp_path / "cache", **options)
    memory = encode(images, Words(), **options).held()
    assert stored.stored
    assert not memory.stored
    assert stored.fingerprint == memory.fingerprint
    one, other = order(stored), order(memory)
    streams = [torch.Generator().manual_seed(5) for _ in range(2)]
    for _ in range(40):
        same(one.next(streams[0]), other.next(streams[1]))
        one.look_ahead(streams[0])
        for stream in streams:
            torch.rand(3, generator=stream)  # as caption dropout does


def test_conditioning_is_padded_as_if_all_rows_were_joined(tmp_path, folder):
    images = read_image_folder(folder)
    data = encode(images, Words(), cache_dir=tmp_path / "cache")
    captions = [caption for bucket in data.buckets for caption in bucket.captions]
    whole = joined([Words().encode_text([caption]) for caption in [*captions, ""]])
    batch = data.batch(torch.arange(4))
    assert {name: value[:4].tolist() for name, value in whole.items()} == {
        name: value.tolist() for name, value in batch.cond.items()
    }
    assert {k: v[-1:].tolist() for k, v in whole.items()} == {
        k: v.tolist() for k, v in data.empty_cond.items()
    }


def test_the_cache_keeps_the_encoders_dtype_and_each_caption_once(tmp_path, folder):
    data = encode(read_image_folder(folder), Words(), cache_dir=tmp_path / "cache")
    files = {p.name for p in (tmp_path / "cache").rglob("*.safetensors")}
    assert len(files) == 7 + 4 + 1  # pictures, different captions, the empty one
    bucket = data.buckets[0]
    assert bucket.cache.read(bucket.keys[0])["latent"].dtype == torch.bfloat16
    assert len(bucket.conds.keys) == 4


def test_caches_of_float32_latents_are_read_on(tmp_path, folder):
    """As versions before wrote them: no index, and latents in float32 whatever the encoder's dtype is."""

    class Before(Words):
        def encode_images(self, pixels):
            return super().encode_images(pixels).float()

    images = read_image_folder(folder)
    encode(images, Before(), cache_dir=tmp_path / "cache")
    (index,) = (tmp_path / "cache").rglob(INDEX)
    index.unlink()
    model = Words()
    data = encode(images, model, cache_dir=tmp_path / "cache")
    assert (model.images, model.captions) == (0, [])
    fresh = encode(images, Words())
    for ids in (torch.arange(4), torch.arange(4, 7)):
        same(data.batch(ids), fresh.batch(ids))


def test_a_full_cache_is_opened_without_reading_it(tmp_path, folder, monkeypatch):
    known = tmp_path / "known"
    images = read_image_folder(folder, known=known)
    first = encode(images, Words(), cache_dir=tmp_path / "cache")
    monkeypatch.setattr("rollout_trainer.training.data.cache._digest", lambda tensors: pytest.fail("hashed"))
    opened = []
    monkeypatch.setattr("rollout_trainer.training.data.folders.look", lambda data: pytest.fail("decoded"))
    load = TensorCache.read
    monkeypatch.setattr(TensorCache, "read", lambda self, key: opened.append(key) or load(self, key))
    again = encode(read_image_folder(folder, known=known), Words(), cache_dir=tmp_path / "cache")
    assert len(opened) == 1  # the empty caption
    assert again.fingerprint == first.fingerprint


def test_files_that_look_otherwise_than_the_index_says_are_checked(tmp_path, folder, caplog):
    images = read_image_folder(folder)
    first = encode(images, Words(), cache_dir=tmp_path / "cache")
    bucket = first.buckets[0]
    file = bucket.cache.folder / f"{bucket.keys[0]}.safetensors"
    before = first.batch(torch.tensor([0]))
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(file, ns=(1, 1))
    model = Words()
    again = encode(images, model, cache_dir=tmp_path / "cache")
    assert model.images == 1
    assert "its content has changed" in caplog.text
    same(again.batch(torch.tensor([0])), before)


@pytest.mark.parametrize("content", [b"", b"x" * 50])
def test_a_spoilt_index_costs_time_and_nothing_else(tmp_path, folder, content):
    images = read_image_folder(folder)
    encode(images, Words(), cache_dir=tmp_path / "cache")
    (index,) = (tmp_path / "cache").rglob(INDEX)
    whole = index.read_bytes()
    index.write_bytes(content)
    model = Words()
    encode(images, model, cache_dir=tmp_path / "cache")
    assert model.images == 0
    assert len(index.read_bytes()) == len(whole)


def test_what_another_process_encoded_meanwhile_is_used(tmp_path, folder):
    images = read_image_folder(folder)
    encode(images, Words(), cache_dir=tmp_path / "cache")
    (index,) = (tmp_path / "cache").rglob(INDEX)
    old = index.read_bytes()
    picture(folder / "new.png", colour=(1, 2, 3), caption="new")
    encode(read_image_folder(folder), Words(), cache_dir=tmp_path / "cache")
    index.write_bytes(old)  # the other process was the last to write it
    model = Words()
    encode(read_image_folder(folder), model, cache_dir=tmp_path / "cache")
    assert (model.images, model.captions) == (0, [])


def test_a_file_that_is_deleted_while_training_reads_it_is_one_clear_line(tmp_path, folder):
    data = encode(read_image_folder(folder), Words(), cache_dir=tmp_path / "cache")
    turns = order(data, 1)
    turns.next()
    for file in data.buckets[0].cache.folder.glob("*.safetensors"):
        file.unlink()
    lost = TensorCache.lost
    turns.look_ahead()  # the thread meets it; whoever asks for the batch is told
    with pytest.raises(
        RuntimeError, match=r"cache file .* must stay .* queue again: Encode Dataset makes it anew"
    ) as e:
        turns.next()
    assert "\n" not in str(e.value)
    assert TensorCache.lost > lost
    model = Words()
    encode(read_image_folder(folder), model, cache_dir=tmp_path / "cache")  # it does
    assert model.images == 7


def test_a_disk_that_is_full_while_encoding_is_one_clear_line_and_loses_nothing(
    tmp_path, folder, monkeypatch
):
    import rollout_trainer.training.data.cache as module

    write, left = module.write_tensors, [3]

    def full(path, tensors, metadata):
        if not left[0]:
            raise OSError(28, "No space left on device")
        left[0] -= 1
        write(path, tensors, metadata)

    monkeypatch.setattr(module, "write_tensors", full)
    with pytest.raises(
        RuntimeError, match="must be writable, got No space left on device; free space and queue"
    ):
        encode(read_image_folder(folder), Words(), cache_dir=tmp_path / "cache")
    monkeypatch.setattr(module, "write_tensors", write)
    model = Words()
    encode(read_image_folder(folder), model, cache_dir=tmp_path / "cache")
    assert model.images == 7 - 3


def test_a_picture_that_changed_since_the_folder_was_read_is_not_cached_as_the_old_one(tmp_path, folder):
    images = read_image_folder(folder)
    picture(folder / "0.png", colour=(9, 9, 9))
    with pytest.raises(
        ValueError, match=r"picture .*0\.png: it has changed since its folder was read; queue again"
    ):
        encode(images, Words(), cache_dir=tmp_path / "cache")


# --- the thread that reads ahead -------------------------------------------------------------------


def test_looking_ahead_draws_from_no_stream_and_is_right_over_the_end_of_an_epoch(tmp_path, folder):
    data = encode(read_image_folder(folder), Words(), cache_dir=tmp_path / "cache", variants=4)
    turns, captions = order(data, 3), torch.Generator().manual_seed(2)
    hits = []
    for _ in range(12):
        before = turns.generator.get_state(), captions.get_state(), turns.state_dict()
        turns.look_ahead(captions)
        assert torch.equal(before[0], turns.generator.get_state())
        assert torch.equal(before[1], captions.get_state())
        assert turns.state_dict()["epoch"] == before[2]["epoch"]
        ahead = turns._ahead.batch()
        hits.append(turns.next(captions) is ahead)
    assert all(hits)
    assert turns.epoch > 2


def test_a_batch_read_ahead_in_vain_is_dropped(tmp_path, folder):
    data = encode(read_image_folder(folder), Words(), cache_dir=tmp_path / "cache")
    turns = order(data, 1)
    turns.next()
    state, stream = turns.state_dict(), turns.generator.get_state()
    expected = [turns.next() for _ in range(3)]
    turns.look_ahead()
    turns.load_state_dict(state)
    turns.generator.set_state(stream)
    for batch in expected:
        same(turns.next(), batch)


def test_no_thread_and_no_data_outlives_its_order(tmp_path, folder):
    data = encode(read_image_folder(folder), Words(), cache_dir=tmp_path / "cache")
    turns = order(data, 1)
    for _ in range(20):
        turns.look_ahead()
        turns.next()
    turns.look_ahead()
    turns._ahead._thread.join()
    gone = weakref.ref(turns._ahead)
    del turns
    gc.collect()
    assert gone() is None
    assert not [thread for thread in threading.enumerate() if thread.name == "next batch"]


def test_data_in_memory_starts_no_thread(make_data):
    turns = order(make_data())
    turns.look_ahead()
    assert turns._ahead is None


# --- as a training sees it --------------------------------------------------------------------------


def test_a_stored_set_trains_and_resumes_as_one_in_memory(tmp_path, make_source, make_config):
    from rollout_trainer.training.trainer.trainer import Trainer

    class Toy(Model):
        def encode_images(self, pixels):
            return torch.nn.functional.adaptive_avg_pool2d(pixels, (6, 6))[:, [0, 1, 2, 0]] - 0.5

        def encode_text(self, captions):
            (caption,) = captions
            return {"context": torch.full((1, 3, 6), float(len(caption)))}

    for i in range(7):
        picture(tmp_path / "set" / f"{i}.png", colour=(30 * i, 5, 7), caption=", ".join("abcdefg"[: i + 1]))
    images = read_image_folder(tmp_path / "set")
    stored = encode(images, Toy(), cache_dir=tmp_path / "cache", variants=3)
    config = make_config(caption_dropout=0.3, batch_size=3)

    def losses(data, steps, state=None):
        with Trainer(make_source("flow"), data, config) as trainer:
            if state is not None:
                trainer.load(state)
            return [trainer.step().loss for _ in range(steps)], trainer.state()

    whole, _ = losses(encode(images, Toy(), variants=3).held(), 12)
    assert losses(stored, 12)[0] == whole
    first, state = losses(stored, 5)
    assert first + losses(stored, 7, state)[0] == whole


def test_variants_are_those_of_the_caption(tmp_path, folder):
    model = Words()
    encode(read_image_folder(folder), model, variants=3)
    wanted = {text for c in ("one two", "x, y z", "tag, b2, c, dd d2", "tag, b3, c, dd d3", "") for text in (
        caption_variants(c, 3, 1)
    )}  # fmt: skip
    assert set(model.captions) == wanted
    assert len(model.captions) == len(wanted)


def test_a_part_of_it_is_read_from_the_cache_too(folder, tmp_path):
    """What is held out of a run, and what is left: the same samples as of the data in memory, none read before."""
    stored = encode(read_image_folder(folder), Words(), cache_dir=tmp_path / "cache", variants=2, flip=True)
    for part, other in zip(hold_out(stored, 0.4), hold_out(stored.held(), 0.4), strict=True):
        assert part.stored
        assert len(part) % 2 == 0  # a picture and its mirror image stay together
        first = 0
        for own, bucket in zip(part.buckets, other.buckets, strict=True):
            assert (tuple(own.names), tuple(own.captions)) == (bucket.names, bucket.captions)
            assert torch.equal(own.repeats, bucket.repeats)
            ids = torch.arange(first, first + len(own))
            same(part.batch(ids), other.batch(ids))
            first += len(own)


def test_rows_are_read_in_place_as_files_hold_them(tmp_path):
    dtypes = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
    cache, keys = TensorCache(tmp_path), [f"{i:032x}" for i in range(3)]
    for i, key in enumerate(keys):
        tensors = {f"t{k}": (torch.rand(1, 5, 3) * 7 - i).to(dtype) for k, dtype in enumerate(dtypes)}
        cache.ensure(key, lambda tensors=tensors: {**tensors, "none": torch.empty(0, 2)})
    found = cache.rows([keys[2], keys[0], keys[2]])
    for i, key in enumerate((keys[2], keys[0], keys[2])):
        for name, value in cache.read(key).items():
            assert value.dtype == found[name].dtype
            assert torch.equal(value, found[name][i]), name
    cache.ensure("f" * 32, lambda: {"t0": torch.ones(2)})
    assert cache.rows([keys[0], "f" * 32]) is None  # of other sizes: they are read one by one
    assert TensorCache(None).rows(keys) is None


@pytest.mark.parametrize("left", [0, 5, 60, 200])
def test_rows_that_are_cut_off_are_one_clear_line(tmp_path, left):
    cache, key = TensorCache(tmp_path), "0" * 32
    cache.ensure(key, lambda: {"a": torch.rand(100)})
    path = tmp_path / f"{key}.safetensors"
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(RuntimeError, match="must stay as it is while a training reads it"):
        cache.rows([key])
