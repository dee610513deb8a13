"""What the runs folder shows over HTTP when files in it are links, devices, or nested without end."""

import json
import os

import pytest

from rollout_trainer.training.files import read_json
from rollout_trainer.training.pictures.film import read_numbers
from rollout_trainer.training.pictures.strip import read_about
from rollout_trainer.training.runs.browse import Runs, saved_loss
from rollout_trainer.training.runs.folder import RunFolder
from rollout_trainer.training.runs.run import start, train

SECRET = {
    "secret": 1,
    "step": 0,
    "prompts": ["secret"],
    "loss": 0.25,
    "workflow": "w",
    "node": "1",
    "version": 1,
}


@pytest.fixture
def run(make_source, make_data, make_config, tmp_path):
    """A run with a film, and a JSON file that lies elsewhere."""
    (tmp_path / "elsewhere").mkdir()
    for name in ("secret.json", "film.json", "samples.json"):
        (tmp_path / "elsewhere" / name).write_text(json.dumps(SECRET))
    config = make_config(preview_every=1)
    return train(start(tmp_path / "runs", "t", make_source("flow"), make_data(), config), 1)


def linked(path, target):
    """`path`, as a link to `target`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def test_no_file_of_a_run_is_read_through_a_link_that_leads_out(run, tmp_path):
    secret, folder = tmp_path / "elsewhere" / "secret.json", run.folder
    runs = Runs(tmp_path / "runs", tmp_path, tmp_path / "loras")
    about = folder.samples_folder(1) / "samples.json"
    numbers = next(folder.film_folder(1).glob("*.json"))
    for path in (folder.panel_path, about, numbers, folder.values_path(1)):
        linked(path, secret)
    assert runs.panels("w") == {}
    assert "secret" not in json.dumps([runs.details("t-0001"), runs.films("t-0001"), runs.samples("t-0001")])
    assert saved_loss(folder.values_path(1)) is None
    for read in (
        lambda: folder.panel(),
        lambda: read_about(about.parent),
        lambda: read_numbers(numbers.parent),
    ):
        with pytest.raises(OSError, match="it is a link to elsewhere"):
            read()
    linked(folder.path / "config.json", secret)
    with pytest.raises(RuntimeError, match="must be a run folder with a config"):
        folder.config()
    assert runs.listed() == {"runs": [], "skipped": ["t-0001"]}


def test_whole_folders_of_a_run_that_are_links_do_not_count(run, tmp_path):
    folder = run.folder
    linked(folder.path / "samples" / "step-00000001", tmp_path / "elsewhere")
    linked(folder.path / "film" / "step-00000007", tmp_path / "elsewhere")
    assert folder.sample_steps() == []
    assert folder.film_steps() == [0, 1]


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 300 + "1" + "}" * 300,
        "9" * 5000,
        "\ud800".encode("utf-8", "replace").decode(),
    ],
)
def test_what_is_nested_without_end_or_no_json_is_a_value_error(text, tmp_path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r".") as told:
        read_json(tmp_path / "a.json", tmp_path)
    assert len(str(told.value)) < 300


def test_numbers_that_json_does_not_have_are_none(tmp_path):
    (tmp_path / "a.json").write_text('{"loss": [NaN, Infinity, 1.5]}')
    assert read_json(tmp_path / "a.json", tmp_path) == {"loss": [None, None, 1.5]}


@pytest.mark.skipif(os.name == "nt", reason="there are no such files")
def test_a_file_that_never_ends_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(RuntimeError, match="must be a run folder"):
        RunFolder(tmp_path).config()
