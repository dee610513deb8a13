"""Paths as people paste them."""

import os
from pathlib import Path

import pytest

from rollout_trainer.host.paths import first_allowed, first_existing, is_loopback, pasted


@pytest.fixture
def place(tmp_path, monkeypatch):
    folder = tmp_path / "моя папка 写真"
    folder.mkdir()
    (tmp_path / "plain").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    return folder


@pytest.mark.skipif(os.name == "nt", reason="backslashes are separators there")
@pytest.mark.parametrize(
    "form",
    ["{}", "{} ", " {}", '"{}"', "'{}'", "{}/", "{}\n", '"{}"\r\n', "file://{}", "' {} '"],
)
def test_a_folder_is_found_however_it_was_pasted(place, form):
    assert first_existing(form.format(place), [Path("/nowhere")]) == place


@pytest.mark.skipif(os.name == "nt", reason="backslashes are separators there")
def test_other_machines_and_browsers_ways_to_write_it(place):
    root = place.parent
    assert first_existing("plain\\", [root]) == root / "plain"
    assert first_existing(".\\plain", [root]) == root / "plain"
    assert first_existing("~/plain", [Path("/nowhere")]) == root / "plain"
    assert first_existing(place.as_uri(), [root]) == place
    assert first_existing(place.as_uri().removeprefix("file://"), [root]) == place


def test_a_name_that_looks_like_a_form_is_taken_as_it_is_where_it_exists(tmp_path):
    (tmp_path / "a%20b").mkdir()
    (tmp_path / "a b").mkdir()
    assert first_existing("a%20b", [tmp_path]) == tmp_path / "a%20b"


def test_quotes_come_in_pairs():
    assert pasted("\"it's") == "\"it's"
    assert pasted('"') == '"'
    assert pasted("''") == ""


@pytest.mark.parametrize("text", ["a" * 5000, "a/" * 3000 + "b", "nul\0", "~nobody-of-that-name/x"])
def test_a_path_that_no_disk_can_have_is_one_line(text, tmp_path):
    said = ""
    try:
        assert not first_existing(text, [tmp_path]).exists()
    except ValueError as err:
        said = str(err)
    assert said.startswith("a path must be one that can be read") or text[0] == "~"
    assert len(said) < 300
    assert said.isprintable()


# --- a host that other machines reach ---------------------------------------------------------------


@pytest.fixture
def rooms(tmp_path):
    """A folder that may be looked into, and one that may not."""
    for name in ("open/own", "open/linked", "secret/deep"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "secret" / "name.png").write_bytes(b"x")
    (tmp_path / "open" / "out").symlink_to(tmp_path / "secret")
    (tmp_path / "open" / "linked" / "in.png").symlink_to(tmp_path / "secret" / "name.png")
    (tmp_path / "open" / "home").symlink_to(tmp_path / "open" / "own")
    return tmp_path / "open", tmp_path / "secret"


def refusal(text, rooms, more=()):
    inside, _ = rooms
    folders = [inside, inside.parent, *more]
    with pytest.raises(ValueError, match="must") as told:
        first_allowed(text, folders, [inside, *more])
    return str(told.value)


def test_what_lies_inside_is_found(rooms):
    inside, secret = rooms
    for text in ("own", "open/own", str(inside / "own"), "own/../own", "home", f"file://{inside}/own", "."):
        assert first_allowed(text if text != "." else "own/.", [inside, inside.parent], [inside]).exists()
    assert first_allowed("not there", [inside.parent, inside], [inside]) == inside / "not there"
    assert first_allowed(str(secret), [inside], [inside, secret]) == secret  # the owner said so


@pytest.mark.parametrize("name", ["", "/deep", "/name.png", "/nothing-of-that-name"])
@pytest.mark.parametrize("way", ["{secret}", "../secret", "secret", "file://{secret}", "%2e%2e/secret"])
def test_what_lies_outside_is_refused_alike_whether_it_is_there_or_not(way, name, rooms):
    text = way.format(secret=rooms[1]) + name
    if way in ("secret", "%2e%2e/secret"):  # a name inside too, where there is nothing
        assert first_allowed(text, [rooms[0], rooms[0].parent], [rooms[0]]) == rooms[0] / text
        return
    told = refusal(text, rooms)
    assert told.startswith("a path must lie in the input, output or model folders of this ComfyUI")
    assert told == refusal("/x/y", rooms).replace("'/x/y'", repr(pasted(text)))
    assert "ROLLOUT_TRAINER_FOLDERS" in told


def test_links_do_not_lead_out(rooms):
    assert "must lie in the input" in refusal("out", rooms)
    assert "must lie in the input" in refusal("out/deep", rooms)
    assert "links must lead to what lies in the input" in refusal("linked", rooms)
    inside, secret = rooms
    assert first_allowed("linked", [inside], [inside, secret]) == inside / "linked"
    assert first_allowed("own", [inside / "home"], [inside / "home"]) == inside / "home" / "own"


def test_a_server_of_its_own_machine_alone_is_known():
    for own in ("127.0.0.1", "127.0.0.1,::1", "localhost", "127.3.3.3", "", "[::1]"):
        assert is_loopback(own), own
    for reached in ("0.0.0.0", "0.0.0.0,::", "127.0.0.1,192.168.1.5", "::", "some-name", "10.0.0.2"):
        assert not is_loopback(reached), reached
