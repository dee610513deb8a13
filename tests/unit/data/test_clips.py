"""Clips: read at a rate, cut into samples of as many frames as the model takes, a still being one frame."""

import sys
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image
from standin import Model, picture
from torch.nn.functional import avg_pool2d

from rollout_trainer.training.data.clips import (
    ClipReader,
    Cut,
    Cutting,
    cuts,
    length,
    look_at_clip,
    resampled,
)
from rollout_trainer.training.data.encoding import encode, samples_shown
from rollout_trainer.training.data.folders import check_image_folder, read_image_folder
from rollout_trainer.training.data.holdout import hold_out


def movie(path, frames=20, fps=8, size=(64, 64), codec="libx264", noise=False):
    """A clip whose k-th frame is of brightness 10 k, or noise."""
    rng = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(fps))
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for k in range(frames):
            pixels = np.full((size[1], size[0], 3), min(10 * k, 250), np.uint8)
            if noise:
                pixels = rng.integers(0, 255, pixels.shape, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    path.with_suffix(".txt").write_text("a caption")
    return path


def animation(path, durations, **options):
    """An animated picture, its k-th frame of brightness 10 k, shown for so many ms each."""
    images = [Image.new("RGB", (64, 64), (10 * k,) * 3) for k in range(len(durations))]
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, **options)
    return path


def numbers(images):
    """Which frames these are."""
    return [round(float(np.asarray(image).mean()) / 10) for image in images]


class Video(Model):
    """Makes clips of 4 n + 1 frames at 8 a second; a latent frame is the mean of its pixels, the first of one frame."""

    frame_rate = 8.0

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def clip_frames(self, most):
        return max(1, (most - 1) // 4 * 4 + 1)

    def encode_images(self, pixels):
        return super().encode_images(pixels)[:, :, None]

    def encode_clip(self, frames):
        self.seen.append(frames)
        small = avg_pool2d(frames, 8).movedim(0, 1)  # [C, F, h, w]
        rest = small[:, 1:].unflatten(1, (-1, 4)).mean(2)
        return torch.cat([small[:, :1], rest], 1)

    def encode_controls(self, controls, target):
        self.given = [(role, round(float(pixels.mean() * 25.5))) for role, pixels in controls]
        assert len(target.shape) == 4
        return {f"concat_{i}": pixels for i, (_, pixels) in enumerate(controls)}


# --- reading -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.webm", "libvpx-vp9"), ("a.mov", "mpeg4")]
)
def test_movies_are_read_frame_by_frame(tmp_path, name, codec):
    fact = look_at_clip(movie(tmp_path / name, codec=codec))
    assert (fact["width"], fact["height"], fact["frames"]) == (64, 64, 20)
    assert fact["seconds"] == pytest.approx(2.5, abs=0.01)
    assert numbers(resampled(tmp_path / name, 0)) == list(range(20))


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "avif"])
def test_animated_pictures_are_clips_with_the_times_of_their_frames(tmp_path, kind):
    fact = look_at_clip(animation(tmp_path / f"a.{kind}", [100, 300, 100, 100], lossless=True))
    assert (fact["frames"], fact["seconds"]) == (4, pytest.approx(0.6))
    assert numbers(resampled(tmp_path / f"a.{kind}", 10)) == [0, 1, 1, 1, 2, 3]


@pytest.mark.parametrize(
    ("fps", "expected"),
    [
        (8, list(range(20))),
        (4, list(range(0, 20, 2))),
        (16, [k // 2 for k in range(40)]),
        (6, [0, 1, 2, 4, 5, 6, 8]),
    ],
)
def test_a_rate_takes_the_frame_that_is_shown_at_its_time(tmp_path, fps, expected):
    path = movie(tmp_path / "a.mp4")
    found = numbers(resampled(path, fps))
    assert found[: len(expected)] == expected
    fact = look_at_clip(path)
    assert len(found) == length(fact["frames"], fact["seconds"], fps)


@pytest.mark.parametrize("fps", [0, 3, 7.992, 12, 15, 23.976, 24, 25, 29.97, 30, 60])
@pytest.mark.parametrize("own", [12, 25, Fraction(30000, 1001)])
def test_a_clip_has_as_many_frames_as_it_is_said_to_have(tmp_path, own, fps):
    fact = look_at_clip(movie(tmp_path / "a.mp4", 19, own, (16, 16)))
    assert len(list(resampled(tmp_path / "a.mp4", fps))) == length(fact["frames"], fact["seconds"], fps)


def test_a_phones_movie_stands_upright(tmp_path):
    from rollout_trainer.training.data.clips import _upright

    class Frame:
        rotation = -90

        def to_image(self):
            image = Image.new("RGB", (20, 10))
            image.putpixel((0, 0), (255, 0, 0))
            return image

    turned = _upright(Frame())
    assert turned.size == (10, 20)
    assert turned.getpixel((9, 0)) == (255, 0, 0)  # -90: to be turned clockwise


def test_parts_of_a_clip_are_read_in_one_pass(tmp_path, monkeypatch):
    path = movie(tmp_path / "a.mp4")
    opened = []
    real = av.open
    monkeypatch.setattr(av, "open", lambda *a, **k: opened.append(a) or real(*a, **k))
    reader = ClipReader(path, 8)
    assert [numbers(reader.frames(cut)) for cut in cuts(20, 9, "all parts")] == [
        list(range(9)),
        list(range(9, 18)),
    ]
    assert len(opened) == 1
    assert numbers(reader.frames(Cut(2, 3))) == [2, 3, 4]
    assert len(opened) == 2
    reader.close()


@pytest.mark.parametrize(
    ("part", "expected"),
    [("start", [(0, 9)]), ("middle", [(5, 9)]), ("all parts", [(0, 9), (9, 9)])],
)
def test_a_long_clip_gives_its_start_its_middle_or_all_parts(part, expected):
    assert [tuple(cut) for cut in cuts(20, 9, part)] == expected


# --- samples -----------------------------------------------------------------------------------------


def test_clips_and_stills_lie_in_buckets_of_frames_and_size(tmp_path):
    movie(tmp_path / "long.mp4", 20)
    movie(tmp_path / "short.mp4", 7)
    movie(tmp_path / "wide.mp4", 20, size=(128, 64))
    picture(tmp_path / "still.png")
    dataset = read_image_folder(tmp_path, cutting=Cutting(13))
    data = encode(dataset, Video(), cache_dir=tmp_path / "cache", bucket_step=16)
    shapes = {bucket.shape: list(bucket.names) for bucket in data.buckets}
    assert shapes == {
        (3, 1, 8, 8): ["still.png"],
        (3, 2, 8, 8): ["short.mp4"],
        (3, 4, 8, 8): ["long.mp4"],
        (3, 4, 6, 10): ["wide.mp4"],
    }
    assert data.summary().splitlines()[-3:] == [
        "long.mp4: 13 of 20 frames at 8 per second",
        "short.mp4: 5 of 7 frames at 8 per second",
        "wide.mp4: 13 of 20 frames at 8 per second",
    ]


def test_a_latent_holds_the_frames_of_its_cut(tmp_path):
    movie(tmp_path / "a.mp4", 20)
    model = Video()
    dataset = read_image_folder(tmp_path, cutting=Cutting(9, part="all parts"))
    data = encode(dataset, model, cache_dir=tmp_path / "cache")
    assert list(data.buckets[0].names) == ["a.mp4", "a.mp4 from frame 9"]
    x0 = data.batch(torch.tensor([1])).x0[0, 0, :, 0, 0] * 25.5
    assert x0.tolist() == pytest.approx([9, 11.5, 15.5], abs=0.3)
    again = encode(dataset, model, cache_dir=tmp_path / "cache")
    assert (len(model.seen), again.fingerprint) == (2, data.fingerprint)


def test_rate_length_and_part_are_told_apart_in_the_cache(tmp_path):
    movie(tmp_path / "a.mp4", 20)
    prints = set()
    for cutting in (
        Cutting(9),
        Cutting(5),
        Cutting(9, 4),
        Cutting(9, part="middle"),
        Cutting(9, given="start frame"),
    ):
        prints.add(encode(read_image_folder(tmp_path, cutting=cutting), Video()).fingerprint)
    assert len(prints) == 5


def test_mirror_images_of_clips_are_mirrored(tmp_path):
    half = Image.new("RGB", (64, 64))
    half.paste("white", (0, 0, 32, 64))
    half.save(
        tmp_path / "a.webp", save_all=True, append_images=[half.rotate(90)] * 4, duration=125, lossless=True
    )
    (tmp_path / "a.txt").write_text("x")
    data = encode(read_image_folder(tmp_path), Video(), flip=True)
    plain, mirrored = data.batch(torch.arange(2)).x0
    assert torch.equal(mirrored, plain.flip(-1))
    assert not torch.equal(mirrored, plain)


def test_a_mask_holds_for_every_frame(tmp_path):
    movie(tmp_path / "a.mp4", 9)
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    mask.save(tmp_path / "a.mask.png")
    batch = encode(read_image_folder(tmp_path), Video()).batch(torch.tensor([0]))
    assert batch.x0.shape == (1, 3, 3, 8, 8)
    assert batch.mask.shape == (1, 1, 1, 8, 8)
    assert batch.mask[0, 0, 0].sum() == 32


def test_what_a_clip_gives_are_its_own_frames_and_a_folder_goes_before(tmp_path):
    movie(tmp_path / "set" / "a.mp4", 9)
    for given, controls, expected in (
        ("nothing", [], None),
        ("start frame", [], [("start frame", 0)]),
        ("start and end frame", [], [("start frame", 0), ("end frame", 8)]),
        ("start and end frame", ["start frame"], [("start frame", 20), ("end frame", 8)]),
    ):
        picture(tmp_path / "frames" / "a.png", colour=(200, 200, 200), caption=None)
        dataset = read_image_folder(
            tmp_path / "set",
            controls=[(tmp_path / "frames", role) for role in controls],
            cutting=Cutting(given=given),
        )
        model = Video()
        encode(dataset, model)
        assert getattr(model, "given", None) == expected


def test_parts_of_one_clip_are_held_out_together(tmp_path):
    for i in range(6):
        movie(tmp_path / f"{i}.mp4", 15 + i, size=(16, 16))
    data = encode(
        read_image_folder(tmp_path, cutting=Cutting(5, part="all parts")), Video(), 16, bucket_step=8
    )
    taught, held = hold_out(data, 0.3)
    names = [{name.split(" ")[0] for b in part.buckets for name in b.names} for part in (taught, held)]
    assert not names[0] & names[1]
    assert len(names[0]) == 4


def test_a_model_of_pictures_takes_the_first_frame_and_says_so(tmp_path):
    movie(tmp_path / "a.mp4", 9)
    animation(tmp_path / "b.gif", [100] * 5)
    (tmp_path / "b.txt").write_text("x")
    picture(tmp_path / "first.png", colour=(0, 0, 0), caption="x")
    dataset = read_image_folder(tmp_path)
    assert dataset.summary().splitlines()[0] == "1 pictures and 2 clips, 3 samples an epoch"
    data = encode(dataset, Model())
    assert data.summary().splitlines() == [
        "3 latents 3x8x8, 3 samples an epoch",
        "a.mp4: only the first of its 9 frames is used, as stand-in makes pictures",
        "b.gif: only the first of its 5 frames is used, as stand-in makes pictures",
    ]
    assert float(data.batch(torch.arange(3)).x0.max()) < 0.02


def test_the_sheet_shows_the_first_and_last_frame(tmp_path):
    movie(tmp_path / "a.mp4", 20)
    (shown,) = samples_shown(read_image_folder(tmp_path, cutting=Cutting(9)), Video())
    assert [round(float(p.mean()) * 25.5) for p in shown.pictures] == [0, 8]
    assert shown.title == "a.mp4  9 frames 64x64"


# --- bad input ---------------------------------------------------------------------------------------


def test_a_clip_of_fewer_frames_than_the_model_needs_is_a_still_and_says_so(tmp_path):
    movie(tmp_path / "a.mp4", 3)
    data = encode(read_image_folder(tmp_path), Video())
    assert data.buckets[0].shape == (3, 1, 8, 8)
    assert "a.mp4: its first frame as a still, as 3 frames at 8 per second are too few for a clip" in (
        data.summary()
    )


@pytest.mark.parametrize(("name", "codec"), [("bad.mp4", "libx264"), ("bad.mov", "mpeg4")])
def test_unreadable_frames_in_the_middle_leave_the_clip_out(tmp_path, name, codec):
    picture(tmp_path / "ok.png")
    path = movie(tmp_path / name, 30, codec=codec, noise=True)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 3000] = bytes(3000)
    path.write_bytes(content)
    dataset = read_image_folder(tmp_path)
    assert [item.path.name for item in dataset.items] == ["ok.png"]
    (line,) = dataset.skipped
    assert line.startswith(f"{name}: it is left out (it")
    assert "cannot be read" in line


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "it cannot be read after 0 frames"), (b"x" * 999, "after 0 frames")]
)
def test_a_movie_of_nothing_is_named(tmp_path, content, said):
    picture(tmp_path / "ok.png")
    (tmp_path / "a.mp4").write_bytes(content)
    (line,) = read_image_folder(tmp_path).skipped
    assert line.startswith("a.mp4: it is left out (")
    assert said in line


def test_sound_alone_is_named(tmp_path):
    picture(tmp_path / "ok.png")
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        for packet in (*stream.encode(frame), *stream.encode()):
            container.mux(packet)
    (line,) = read_image_folder(tmp_path).skipped
    assert line == "a.mp4: it is left out (it has no picture, only sound)"


def test_an_animation_that_breaks_off_is_its_first_frame_and_says_so(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "a.gif"
    noise = [Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)) for _ in range(5)]
    noise[0].save(path, save_all=True, append_images=noise[1:], duration=100)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40] = b"\xff" * 40
    path.write_bytes(content)
    dataset = read_image_folder(tmp_path, "x")
    assert [item.clip for item in dataset.items] == [None]
    (line,) = dataset.skipped
    assert line.startswith("a.gif: only the first of its 5 frames is used (it cannot be read after 2 frames")


def test_without_pyav_movies_are_named_and_the_rest_goes_on(tmp_path, monkeypatch):
    movie(tmp_path / "a.mp4")
    animation(tmp_path / "b.webp", [100] * 5)
    (tmp_path / "b.txt").write_text("x")
    monkeypatch.setitem(sys.modules, "av", None)
    dataset = read_image_folder(tmp_path)
    assert [item.clip.frames for item in dataset.items] == [5]
    assert dataset.skipped == (
        "a.mp4: it is left out (movies need PyAV, which is not installed: pip install av, or save it as an animated "
        "webp or gif)",
    )


def test_a_clip_that_has_changed_since_is_named(tmp_path):
    movie(tmp_path / "a.mp4", 20)
    dataset = read_image_folder(tmp_path)
    movie(tmp_path / "a.mp4", 5)
    with pytest.raises(
        ValueError, match=r"clip .*a\.mp4: it has changed since its folder was read; queue again"
    ):
        encode(dataset, Video())


def test_the_folder_is_checked_without_decoding_clips_whole(tmp_path, monkeypatch):
    movie(tmp_path / "a.mp4", 20)
    decoded = []
    real = av.VideoFrame.to_image if hasattr(av.VideoFrame, "to_image") else None
    assert real is not None
    from rollout_trainer.training.data import clips

    monkeypatch.setattr(clips, "_upright", lambda frame: decoded.append(1) or frame.to_image())
    check_image_folder(tmp_path)
    assert len(decoded) <= 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"frames": 0}, "clip_frames must be at least 1, got 0"),
        ({"fps": -1.0}, "clip_fps must be at least 0, got -1.0"),
        ({"part": "end"}, "clip_part must be one of start, middle, all parts, got end"),
        ({"given": "x"}, "clip_gives must be one of nothing, start frame, start and end frame, got x"),
    ],
)
def test_cutting_that_makes_no_sense_is_one_line(options, said):
    with pytest.raises(ValueError, match=said):
        Cutting(**options)


def test_what_is_known_of_a_clip_is_kept(tmp_path, monkeypatch):
    movie(tmp_path / "set" / "a.mp4")
    animation(tmp_path / "set" / "b.gif", [100] * 5)
    (tmp_path / "set" / "b.txt").write_text("x")
    first = read_image_folder(tmp_path / "set", known=tmp_path / "known")
    from rollout_trainer.training.data import clips

    def fail(path):
        raise AssertionError(path)

    monkeypatch.setattr(clips, "shots", fail)
    again = read_image_folder(tmp_path / "set", known=tmp_path / "known")
    assert [item.clip for item in again.items] == [item.clip for item in first.items]


# --- long clips --------------------------------------------------------------------------------------


class Long(Video):
    """Holds ten frames at most, and asks for parts of longer clips, the second beginning within the first."""

    whole_frames = 10

    def encode_clip(self, frames):
        if isinstance(frames, torch.Tensor):
            assert len(frames) <= self.whole_frames
            return super().encode_clip(frames)
        parts = [frames[first : first + 9] for first in range(0, len(frames) - 1, 4)]
        assert all(len(part) <= 9 for part in parts)
        whole = torch.cat([parts[0][:5], *(part[5:9] for part in parts)])[: len(frames)]
        return Video.encode_clip(self, whole)


@pytest.mark.parametrize("flip", [False, True])
def test_a_long_clip_is_never_held_whole_and_gives_the_same_latents(tmp_path, flip):
    movie(tmp_path / "set" / "a.mp4", frames=45, noise=True)
    dataset = read_image_folder(tmp_path / "set", cutting=Cutting(41))
    whole, parts = (
        encode(dataset, model, 64, tmp_path / name, flip=flip)
        for name, model in (("whole", Video()), ("parts", Long()))
    )
    assert whole.fingerprint == parts.fingerprint
    for a, b in zip(whole.buckets, parts.buckets, strict=True):
        rows = torch.arange(len(a))
        assert torch.equal(a.read(rows, rows * 0)[0], b.read(rows, rows * 0)[0])


def test_of_a_long_clip_no_more_frames_live_at_once_than_of_a_part(tmp_path):
    from rollout_trainer.training.data.encoding import _Passing

    path = movie(tmp_path / "a.mp4", frames=60)
    passing = _Passing(ClipReader(path, 0), Cut(5, 50), (64, 64))
    seen = []
    for first, last in ((0, 10), (6, 16), (16, 20), (49, 50), (0, 1), (0, 50)):
        part = passing.read(first, last)
        assert passing._held is part
        seen.append([round(float(frame.mean()) * 25.5) for frame in part])
    expected = [min(25, 5 + k) for k in range(50)]
    assert seen == [
        expected[0:10], expected[6:16], expected[16:20], expected[49:50], expected[:1], expected
    ]  # fmt: skip


def test_a_long_clip_gives_its_own_start_and_end_frame(tmp_path):
    movie(tmp_path / "set" / "a.mp4", frames=21)
    model = Long()
    cutting = Cutting(21, given="start and end frame")
    encode(read_image_folder(tmp_path / "set", cutting=cutting), model, 64, tmp_path / "cache")
    assert model.given == [("start frame", 0), ("end frame", 20)]


class Told(Video):
    """Is told the rate of clips."""

    def encode_rate(self, fps):
        return {} if fps == self.frame_rate else {"frame_rate": torch.tensor([fps])}


@pytest.mark.parametrize(("fps", "said"), [(0.0, None), (8.0, None), (4.0, 4.0)])
def test_a_rate_that_is_not_the_familys_belongs_to_clips_and_not_to_stills(tmp_path, fps, said):
    movie(tmp_path / "set" / "a.mp4", frames=20)
    picture(tmp_path / "set" / "b.png")
    dataset = read_image_folder(tmp_path / "set", cutting=Cutting(9, fps))
    data = encode(dataset, Told(), 64, tmp_path / "cache")
    rows = torch.tensor([0])
    still, clip = (bucket.read(rows, bucket.texts(rows, rows))[1] for bucket in data.buckets)
    assert "frame_rate" not in still
    assert (clip["frame_rate"].tolist() if "frame_rate" in clip else None) == (said and [said])
    plain = encode(dataset, Video(), 64, tmp_path / "cache")
    assert (plain.fingerprint == data.fingerprint) == (said is None)


def test_a_rate_stands_beside_given_frames(tmp_path):
    movie(tmp_path / "set" / "a.mp4", frames=20)
    dataset = read_image_folder(tmp_path / "set", cutting=Cutting(9, 4.0, given="start frame"))
    data = encode(dataset, Told(), 64, tmp_path / "cache")
    rows = torch.tensor([0])
    cond = data.buckets[0].read(rows, rows)[1]
    assert {"concat_0", "frame_rate"} <= cond.keys()
