"""The workflows that ship, read without ComfyUI."""

from pathlib import Path

import pytest

from rollout_trainer.host.graph.catalog import from_nodes
from rollout_trainer.host.graph.reading import parse, read_file
from rollout_trainer.host.graph.validate import problems
from rollout_trainer.host.standalone.core_nodes import CORE_NODES
from rollout_trainer.nodes import NODES

WORKFLOWS = Path(__file__).resolve().parents[4] / "workflows"
HEADLESS = {"exposure-bias", "quickstart", "sampler-comparison", "staged-training"}
"""The others train a MODEL of ComfyUI."""


@pytest.mark.parametrize("path", sorted(WORKFLOWS.glob("*.json")), ids=lambda path: path.stem)
def test_it_is_valid_headless_or_lacks_the_hosts_own_nodes_alone(path):
    graph = parse(read_file(path), from_nodes([*CORE_NODES, *NODES]))
    wrong = problems(graph, from_nodes([*CORE_NODES, *NODES]))
    if path.stem not in HEADLESS:
        assert wrong
        assert all(
            "must be a known node" in line and "Rollout" not in line.split("must be")[0] for line in wrong
        )
    else:
        assert wrong == []


@pytest.mark.parametrize("path", sorted(WORKFLOWS.glob("*.json")), ids=lambda path: path.stem)
def test_it_has_a_thumbnail(path):
    assert path.with_suffix(".jpg").is_file()
