"""Paths as people paste them."""

import os
from pathlib import Path

import pytest

from rollout_trainer.host.paths import first_existing, pasted


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
