"""Edit pairs from folders in a real ComfyUI: a tiny Flux, which takes references, and a tiny SD3, which takes none."""

from __future__ import annotations

import numpy as np
import pytest
from comfyui_process import ComfyUI, HostError
from PIL import Image
from prompt_builder import Link, PromptBuilder


@pytest.fixture
def folders(comfyui: ComfyUI) -> tuple[str, str]:
    """Six targets and their references, of another shape one of them."""
    rng = np.random.default_rng(0)
    for name in ("pairs", "references"):
        place = comfyui.base / "input" / name
        place.mkdir(parents=True, exist_ok=True)
        for i in range(6):
            size = (96, 64) if i == 5 and name == "references" else (64, 64)
            Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).resize(size).save(place / f"{i}.png")
            if name == "pairs":
                (place / f"{i}.txt").write_text(f"make it blue, number {i}")
    return "pairs", "references"


def trained(
    graph: PromptBuilder, family: str, folders: tuple[str, str], **settings: str
) -> tuple[Link, Link, Link]:
    """Data of the folders, and the run that is trained on it with rollouts."""
    base = graph.add("TestTinyModel", family=family, dtype="float32")
    clip, vae = graph.add("TestTinyClip", family=family), graph.add("TestTinyVae", channels=16)
    source = graph.add("RolloutFromComfyModel", model=base, clip=clip, vae=vae)
    dataset = graph.add("RolloutDatasetFromFolder", folder=folders[0], control_1=folders[1], **settings)
    data = graph.add("RolloutEncodeDataset", model=source, dataset=dataset, resolution=64)
    run = graph.add(
        "RolloutTrainLoRA",
        model=source,
        data=data,
        steps=4,
        batch_size=3,
        caption_dropout=0.3,
        preview_every=2,
        scheduled_sampling=graph.add("RolloutScheduledSampling", max_step_offset=2, probability=0.8),
    )
    graph.add("PreviewAny", source=[run[0], 2])
    return dataset, data, run


def test_pairs_train_with_rollouts_and_films_and_the_sheet_shows_them(
    comfyui: ComfyUI, folders: tuple[str, str]
) -> None:
    graph = PromptBuilder(comfyui.object_info())
    dataset, data, run = trained(graph, "flux", folders)
    shown = comfyui.queue(graph.prompt)["outputs"]
    assert shown[dataset[0]]["text"][0].startswith("6 pictures")
    assert shown[data[0]]["images"]
    assert "step 4 of 4" in shown[run[0]]["text"][0]
    assert list((comfyui.base / "output").rglob("film/step-00000004/film.json"))


def test_a_family_that_takes_no_references_says_so_in_one_line(
    comfyui: ComfyUI, folders: tuple[str, str]
) -> None:
    graph = PromptBuilder(comfyui.object_info())
    trained(graph, "sd3", folders)
    with pytest.raises(
        HostError, match="control folders must suit the model, but SD3 makes nothing of: reference"
    ):
        comfyui.queue(graph.prompt)
