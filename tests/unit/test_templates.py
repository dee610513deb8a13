"""The workflows that ship, as files: what a user gets who opens one and presses Run."""

import json
from pathlib import Path

import pytest

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
LORA = sorted(path.name for path in WORKFLOWS.glob("*-lora.json"))


def shipped(name):
    return json.loads((WORKFLOWS / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", LORA)
def test_a_long_training_films_and_saves_on_its_way(name):
    trainings = [node for node in shipped(name)["nodes"] if node["type"] == "RolloutTrainLoRA"]
    assert trainings
    for train in trainings:
        names = [own["name"] for own in train["inputs"] if own.get("widget")]
        values = dict(zip(names, train["widgets_values"], strict=True))
        assert 100 <= values["preview_every"] <= 250
        assert values["save_every"] == 250
