"""What the routes may touch: runs directly inside the runs folder."""

import pytest

from rollout_trainer.training.runs import run_path
from rollout_trainer.training.state import RunFolder


def test_a_run_is_found_by_its_name(tmp_path):
    folder = RunFolder.create(tmp_path, "a run", {})
    assert run_path(tmp_path, "a run-0001") == folder.path


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../secret",
        "a/../../secret",
        "/etc",
        "..\\secret",
        "C:secret",
        "a\0b",
        "none",
        "link",
        "bare",
    ],
)
def test_nothing_else_is(name, tmp_path):
    root = tmp_path / "runs"
    secret = RunFolder.create(tmp_path, "secret", {}).path.rename(tmp_path / "secret")
    root.mkdir()
    (root / "link").symlink_to(secret)
    (root / "bare").mkdir()
    with pytest.raises(LookupError, match="no run of that name"):
        run_path(root, name)
