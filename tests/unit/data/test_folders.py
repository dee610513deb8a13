"""Dataset folders as people have them: every file is used, or named in one line."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from standin import Model, held, picture

from rollout_trainer.training.data.folders import check_image_folder, folder_stamp, read_image_folder
from rollout_trainer.training.data.images import fitted_mask
from rollout_trainer.training.data.order import BatchOrder


def captions(folder, *args, **options):
    """Caption by file name."""
    return {item.path.name: item.caption for item in read_image_folder(folder, *args, **options).items}


# --- kinds of pictures ------------------------------------------------------------------------------


def test_every_kind_of_picture_is_read_or_named(tmp_path):
    image, other = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")
    for name in ("ok.png", "b.avif", "c.tif", "g.tiff"):
        image.save(tmp_path / name)
    image.save(tmp_path / "a.gif", save_all=True, append_images=[other])
    for name in ("d.jfif", "e.jpe"):
        image.save(tmp_path / name, format="JPEG")
    image.save(tmp_path / "avif_named.jpg", format="AVIF")
    (tmp_path / "f.heic").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 50)
    (tmp_path / "heic_named.jpg").write_bytes((tmp_path / "f.heic").read_bytes())
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    dataset = read_image_folder(tmp_path, "x")
    assert {item.path.name for item in dataset.items} == {
        "a.gif", "avif_named.jpg", "b.avif", "c.tif", "d.jfif", "e.jpe", "g.tiff", "ok.png",
    }  # fmt: skip
    assert [item.path.name for item in dataset.items if item.clip] == ["a.gif"]
    assert dataset.skipped == (
        "f.heic: pictures of this kind are not read; convert it to png or jpg",
        "notes.md: files of this kind are not read",
        "heic_named.jpg: it cannot be read as a picture (no known kind of picture is in it)",
    )


def test_many_files_of_one_fault_are_one_line(tmp_path):
    picture(tmp_path / "a.png")
    for i in range(50):
        (tmp_path / f"{i:02d}.npz").write_bytes(b"x")
    assert read_image_folder(tmp_path).skipped == ("00.npz and 49 more: files of this kind are not read",)


def test_a_summary_shows_twenty_lines_and_how_many_more(tmp_path):
    picture(tmp_path / "a.png")
    for i in range(30):
        (tmp_path / f"x.e{i:02d}").write_bytes(b"x")
    summary = read_image_folder(tmp_path).summary()
    assert summary.count("skipped x.e") == 20
    assert summary.endswith("and 10 more were skipped")


# --- subfolders -------------------------------------------------------------------------------------


def test_a_folder_of_0_repeats_is_left_out_with_a_line(tmp_path):
    picture(tmp_path / "0_off" / "a.png")
    picture(tmp_path / "2_on" / "b.png")
    dataset = read_image_folder(tmp_path)
    assert [item.path.name for item in dataset.items] == ["b.png"]
    assert dataset.skipped == ("0_off/: it is left out, as its name says 0 times an epoch",)


def test_a_set_of_0_samples_is_refused_and_nothing_loops(tmp_path, make_data):
    picture(tmp_path / "0_off" / "a.png")
    with pytest.raises(ValueError, match=r"must hold pictures .* none is usable: 0_off/: it is left out"):
        read_image_folder(tmp_path)
    data = make_data(3)
    data.buckets[0].repeats.zero_()
    with pytest.raises(ValueError, match="at least one sample in an epoch, got 3 that come 0 times"):
        BatchOrder(data, 1, torch.Generator())


def test_absurd_repeats_are_named(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / ("9" * 30 + "_x") / "b.png")
    assert "more than 1000000 times an epoch" in read_image_folder(tmp_path).skipped[0]


def test_nested_folders_are_read_where_asked_and_named_else(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "old" / "deep" / "x.png", caption="deep")
    picture(tmp_path / "3_on" / "more" / "y.png", caption="more")
    flat = read_image_folder(tmp_path)
    assert [item.path.name for item in flat.items] == ["a.png"] or len(flat.items) == 1
    assert flat.skipped == (
        "3_on/more/: its pictures are not read; switch subfolders on",
        "old/: its pictures are not read; name it N_old to have them N times an epoch, or switch subfolders on",
    )
    nested = read_image_folder(tmp_path, nested=True)
    assert [(item.path.name, item.repeats) for item in nested.items] == [
        ("a.png", 1),
        ("y.png", 3),
        ("x.png", 1),
    ]
    assert nested.skipped == ()


def test_links_in_a_circle_end(tmp_path):
    picture(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "again").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "nowhere.png").symlink_to(tmp_path / "gone.png")
    dataset = read_image_folder(tmp_path, nested=True)
    assert [item.path.name for item in dataset.items] == ["a.png"]
    assert dataset.skipped == ("in/nowhere.png: it cannot be read (No such file or directory)",)


# --- captions ---------------------------------------------------------------------------------------


def test_captions_of_five_tools(tmp_path):
    for name in ("a", "b", "c", "d", "e", "f"):
        picture(tmp_path / f"{name}.png", caption=None)
    (tmp_path / "a.txt").write_text("from txt\n")
    (tmp_path / "b.caption").write_text("from caption")
    (tmp_path / "c.json").write_text(json.dumps({"caption": "from json", "tags": ["x", "y"]}))
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "d.png", "text": "from jsonl"}\n')
    (tmp_path / "metadata.csv").write_text('file_name,text\ne.png,"from csv, with a comma"\nd.png,second\n')
    (tmp_path / "meta_cap.json").write_text(
        json.dumps({"some/where/f": {"caption": "kohya", "tags": "1girl"}})
    )
    dataset = read_image_folder(tmp_path)
    assert {item.path.stem: item.caption for item in dataset.items} == {
        "a": "from txt",
        "b": "from caption",
        "c": "from json, x, y",
        "d": "from jsonl",
        "e": "from csv, with a comma",
        "f": "kohya, 1girl",
    }
    assert dataset.skipped == ()


def test_a_table_may_speak_of_subfolders(tmp_path):
    picture(tmp_path / "2_in" / "a.png", caption=None)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "2_in/a.png", "text": "from above"}\n')
    assert captions(tmp_path) == {"a.png": "from above"}


def test_rows_that_cannot_be_used_are_named_and_the_rest_goes_on(tmp_path):
    for name in "abc":
        picture(tmp_path / f"{name}.png", caption=None)
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "a.png", "text": "A"}\nnot json\n{"text": "no file"}\n{"file_name": "z.png", "text": "Z"}\n'
    )
    (tmp_path / "other.json").write_text("[1, 2]")
    (tmp_path / "broken.json").write_text("{")
    dataset = read_image_folder(tmp_path, "default")
    assert [item.caption for item in dataset.items] == ["A", "default", "default"]
    lines = "\n".join(dataset.skipped)
    assert "metadata.jsonl: line 2: it is no JSON" in lines
    assert "metadata.jsonl: line 3: it must have file_name and text" in lines
    assert "metadata.jsonl: it has a caption of z.png, which is not there" in lines
    assert "other.json: it is no table of captions" in lines
    assert "broken.json: it is no JSON" in lines


def test_the_caption_file_that_is_not_read_is_named(tmp_path):
    picture(tmp_path / "a.png", caption="txt")
    (tmp_path / "a.caption").write_text("other")
    dataset = read_image_folder(tmp_path)
    assert dataset.items[0].caption == "txt"
    assert dataset.skipped == ("a.caption: it is not read, as .txt goes before, then .caption",)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_encodings_that_say_what_they_are(tmp_path, encoding):
    picture(tmp_path / "a.png", caption=None)
    (tmp_path / "a.txt").write_bytes("Bär 写真".encode(encoding))
    assert captions(tmp_path) == {"a.png": "Bär 写真"}


@pytest.mark.parametrize("content", ["Bär".encode("latin-1"), "ab".encode("utf-16-le"), b"\xff\xfea"])
def test_a_caption_in_an_unknown_encoding_leaves_its_picture_out_and_the_rest_goes_on(tmp_path, content):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    (tmp_path / "a.txt").write_bytes(content)
    dataset = read_image_folder(tmp_path)
    assert [item.path.name for item in dataset.items] == ["b.png"]
    (line,) = dataset.skipped
    assert line.startswith("a.txt: its picture is left out (it must be UTF-8 text, or UTF-16 with")


def test_the_trigger_is_looked_for_as_a_word(tmp_path):
    for name, text in {"a": "asksome cat", "b": "a photo of sks", "c": "sks, cat", "d": "sks-like"}.items():
        picture(tmp_path / f"{name}.png", caption=text)
    assert list(captions(tmp_path, trigger="sks").values()) == [
        "sks, asksome cat", "a photo of sks", "sks, cat", "sks-like",
    ]  # fmt: skip


# --- masks ------------------------------------------------------------------------------------------


def masked(folder, name, mask):
    picture(folder / f"{name}.png")
    mask.save(folder / f"{name}.mask.png")


def halves(folder):
    """Mean of the left and of the right half of each mask, by name."""
    out = {}
    for item in read_image_folder(folder).items:
        mask = fitted_mask(item, item.mask.read_bytes(), 64, 64)
        out[item.path.stem] = (round(float(mask[..., :32].mean()), 3), round(float(mask[..., 32:].mean()), 3))
    return out


def test_masks_mean_what_they_show(tmp_path):
    half = np.zeros((64, 64), np.uint16)
    half[:, 32:] = 20000
    masked(tmp_path, "gray16", Image.fromarray(half))
    masked(tmp_path, "gray8", Image.fromarray((half / 257).astype(np.uint8)))
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[..., :3], rgba[:, 32:, 3] = 255, 255  # white, transparent on the left
    masked(tmp_path, "alpha", Image.fromarray(rgba))
    rgb = np.zeros((64, 64, 3), np.uint8)
    rgb[:, 32:] = (255, 0, 0)
    masked(tmp_path, "paint", Image.fromarray(rgb))
    masked(tmp_path, "one", Image.fromarray(half > 0))
    masked(tmp_path, "size", Image.fromarray((half > 0).astype(np.uint8) * 255).resize((200, 100), 0))
    grey = 78 / 255
    assert halves(tmp_path) == {
        "alpha": (0, 1), "gray16": (0, round(grey, 3)), "gray8": (0, round(77 / 255, 3)), "one": (0, 1),
        "paint": (0, 1), "size": (0, 1),
    }  # fmt: skip


def test_masks_that_cannot_be_used_leave_their_picture_out_with_a_line(tmp_path):
    masked(tmp_path, "black", Image.new("L", (64, 64), 0))
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    masked(tmp_path, "cut", Image.fromarray(noise))
    data = (tmp_path / "cut.mask.png").read_bytes()
    (tmp_path / "cut.mask.png").write_bytes(data[: len(data) // 2])
    picture(tmp_path / "good.png")
    Image.new("L", (64, 64)).save(tmp_path / "nobody.mask.png")
    dataset = read_image_folder(tmp_path)
    assert [item.path.name for item in dataset.items] == ["good.png"]
    assert dataset.skipped[0] == "nobody.mask.png: there is no picture of that name"
    assert dataset.skipped[1] == "black.mask.png: its picture is left out, as it is all black"
    assert dataset.skipped[2].startswith("cut.mask.png: its picture is left out, as it cannot be read (")


def test_a_mask_that_older_versions_misread_is_encoded_anew_and_the_others_are_not(tmp_path):
    """The key of what was cached before: content digests alone."""
    from rollout_trainer.training.data.images import look_at_mask

    Image.new("L", (8, 8), 200).save(tmp_path / "plain.png")
    Image.new("RGB", (8, 8), (200, 200, 200)).save(tmp_path / "grey.png")
    Image.fromarray(np.full((8, 8), 20000, np.uint16)).save(tmp_path / "deep.png")
    import hashlib

    for name, as_before in (("plain", True), ("grey", True), ("deep", False)):
        data = (tmp_path / f"{name}.png").read_bytes()
        assert (look_at_mask(data)["digest"] == hashlib.sha256(data).hexdigest()) == as_before


# --- what is known of files -------------------------------------------------------------------------


def test_only_new_and_changed_files_are_looked_at(tmp_path, monkeypatch):
    import rollout_trainer.training.data.folders as module

    folder, known = tmp_path / "set", tmp_path / "known"
    for name in "abc":
        picture(folder / f"{name}.png", caption=name)
    looked = []
    look = module.look
    monkeypatch.setattr(module, "look", lambda data: looked.append(1) or look(data))
    first = read_image_folder(folder, known=known)
    assert len(looked) == 3
    again = read_image_folder(folder, known=known)
    assert len(looked) == 3
    assert tuple(again.items) == tuple(first.items)
    picture(folder / "b.png", colour=(1, 2, 3), caption="other")
    changed = read_image_folder(folder, known=known)
    assert len(looked) == 4
    assert [item.caption for item in changed.items] == ["a", "other", "c"]
    (folder / "a.png").unlink()
    (folder / "a.txt").unlink()
    assert len(read_image_folder(folder, known=known).items) == 2
    assert len(looked) == 4


def test_a_file_of_the_same_size_and_time_is_told_by_its_times_of_change(tmp_path):
    picture(tmp_path / "set" / "a.png", caption="one")
    read_image_folder(tmp_path / "set", known=tmp_path / "known")
    stat = (tmp_path / "set" / "a.txt").stat()
    (tmp_path / "set" / "a.txt").write_text("two")
    os.utime(tmp_path / "set" / "a.txt", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert captions(tmp_path / "set", known=tmp_path / "known") == {"a.png": "two"}


@pytest.mark.parametrize("content", [b"", b"x" * 40])
def test_what_is_known_may_be_spoilt_or_nowhere_to_be_kept(tmp_path, content, caplog):
    picture(tmp_path / "set" / "a.png")
    read_image_folder(tmp_path / "set", known=tmp_path / "known")
    (file,) = (tmp_path / "known").iterdir()
    file.write_bytes(content)
    assert len(read_image_folder(tmp_path / "set", known=tmp_path / "known").items) == 1
    assert "is made anew" in caplog.text
    (tmp_path / "file").write_text("no folder")
    assert len(read_image_folder(tmp_path / "set", known=tmp_path / "file").items) == 1
    assert "is not kept" in caplog.text


def test_checking_a_folder_decodes_one_picture(tmp_path, monkeypatch):
    import rollout_trainer.training.data.folders as module

    for name in "abc":
        picture(tmp_path / f"{name}.png")
    looked = []
    look = module.look
    monkeypatch.setattr(module, "look", lambda data: looked.append(1) or look(data))
    check_image_folder(tmp_path)
    assert len(looked) == 1
    (tmp_path / "c.txt").unlink()
    with pytest.raises(ValueError, match=r"c\.png must have a caption file c\.txt \(1 pictures have none\)"):
        check_image_folder(tmp_path)


def test_a_folders_stamp_tells_of_any_change_at_any_depth(tmp_path):
    picture(tmp_path / "a" / "b" / "c.png")
    stamps = {folder_stamp(tmp_path)}
    picture(tmp_path / "a" / "b" / "d.png")
    stamps.add(folder_stamp(tmp_path))
    (tmp_path / "a" / "b" / "c.txt").write_text("other")
    stamps.add(folder_stamp(tmp_path))
    assert len(stamps) == 3
    assert folder_stamp(tmp_path) in stamps


def test_a_file_is_no_folder(tmp_path):
    picture(tmp_path / "a.png")
    with pytest.raises(ValueError, match="must be a folder, but is a file; name the folder that it lies in"):
        read_image_folder(tmp_path / "a.png")


def test_items_are_a_sequence(tmp_path):
    for name in "abc":
        picture(tmp_path / f"{name}.png", caption=name)
    items = read_image_folder(tmp_path).items
    assert [item.caption for item in items] == ["a", "b", "c"]
    assert items[-1] == items[2]
    assert items[:2] == (items[0], items[1])
    with pytest.raises(IndexError):
        items[3]
    model = Model()
    assert len(held(read_image_folder(tmp_path), model)) == 3


def test_a_folder_is_checked_before_it_is_known_whether_subfolders_are_read(tmp_path):
    picture(tmp_path / "in" / "a.png")
    check_image_folder(tmp_path)
    check_image_folder(tmp_path, nested=True)
    with pytest.raises(ValueError, match="switch subfolders on"):
        check_image_folder(tmp_path, nested=False)
