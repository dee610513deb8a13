"""Folders as people have them, in a real ComfyUI: a phone's pictures, and thousands of small ones.

ROLLOUT_PICTURES=10000 sets how many those are; 300 if nothing is said, so that the test is quick.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
from comfyui_process import ComfyUI
from PIL import Image
from prompt_builder import Link, PromptBuilder

MANY = int(os.environ.get("ROLLOUT_PICTURES", "300"))


def trained(
    graph: PromptBuilder, folder: str, resolution: int, **settings: object
) -> tuple[Link, Link, Link]:
    """A tiny SD3 that is trained on a folder, with rollouts and films."""
    base = graph.add("TestTinyModel", family="sd3", dtype="float32")
    clip, vae = graph.add("TestTinyClip", family="sd3"), graph.add("TestTinyVae", channels=16)
    source = graph.add("RolloutFromComfyModel", model=base, clip=clip, vae=vae)
    dataset = graph.add("RolloutDatasetFromFolder", folder=folder, **settings)
    data = graph.add(
        "RolloutEncodeDataset", model=source, dataset=dataset, resolution=resolution, bucket_step=16
    )
    run = graph.add(
        "RolloutTrainLoRA",
        model=source,
        data=data,
        run_name=folder,
        steps=4,
        batch_size=2,
        preview_every=2,
        scheduled_sampling=graph.add("RolloutScheduledSampling", max_step_offset=2, probability=0.8),
    )
    graph.add("PreviewAny", source=[run[0], 2])
    return dataset, data, run


def test_a_phones_pictures_train_upright_and_what_is_not_read_is_named(comfyui: ComfyUI) -> None:
    place = comfyui.base / "input" / "phone"
    place.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (128, 96), "white")  # lies on its side: what is left here is up
    image.paste("red", (0, 0, 32, 96))
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("IMG_0001.JPG", "写真 (2).jpeg", "été #3.jpg", "a'b\"c.jpg"):
        image.save(place / name, "JPEG", exif=exif)
    image.save(place / "two in one.jpg", "MPO", save_all=True, append_images=[image])
    (place / "IMG_0004.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 50)
    (place / ".DS_Store").write_bytes(b"x")
    graph = PromptBuilder(comfyui.object_info())
    dataset, data, run = trained(graph, "phone", 64, default_caption="a photograph")
    shown = comfyui.queue(graph.prompt)["outputs"]
    lines = shown[dataset[0]]["text"][0].splitlines()
    assert lines[0] == "5 pictures, 5 samples an epoch"
    assert lines[1] == "sizes: 4 of 96x128, 1 of 128x96"
    assert "skipped IMG_0004.HEIC: pictures of this kind are not read; convert it to png or jpg" in lines
    assert "skipped two in one.jpg: only the first of its 2 frames is used" in lines
    assert "16x10x6" in shown[data[0]]["text"][0] or "16x8x6" in shown[data[0]]["text"][0]
    assert "step 4 of 4" in shown[run[0]]["text"][0]
    assert list((comfyui.base / "output").rglob("phone-*/film/step-00000004/film.json"))


@pytest.mark.timeout(300 + MANY // 5)
def test_thousands_of_pictures_train(comfyui: ComfyUI) -> None:
    place = comfyui.base / "input" / "many"
    place.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(MANY):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(place / f"{i:05d}.png")
    graph = PromptBuilder(comfyui.object_info())
    _, data, run = trained(graph, "many", 16, default_caption="noise")
    shown = comfyui.queue(graph.prompt, timeout=1500)["outputs"]
    assert shown[data[0]]["text"][0] == f"{MANY} latents 16x2x2, {MANY} samples an epoch"
    assert "step 4 of 4" in shown[run[0]]["text"][0]
