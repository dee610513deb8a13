"""Clips from a folder in a real ComfyUI: tiny Wan models, with an autoencoder of Wan's kind."""

from __future__ import annotations

from pathlib import Path

import av
import pytest
from comfyui_process import ComfyUI
from PIL import Image, ImageDraw
from prompt_builder import PromptBuilder


def frame(k: int, hue: str, size: tuple[int, int]) -> Image.Image:
    """A ball that rolls to the right, four pixels a sixteenth of a second."""
    image = Image.new("RGB", size, (240, 240, 240))
    left = 4 + 4 * k
    ImageDraw.Draw(image).ellipse((left, 20, left + 20, 40), fill=hue)
    return image


def movie(path: Path, codec: str, frames: int, fps: int, hue: str) -> None:
    """A movie of it, not square."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for k in range(frames):
            image = frame(k * 16 // fps, hue, (96, 64))
            for packet in stream.encode(av.VideoFrame.from_image(image)):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


@pytest.fixture
def folder(comfyui: ComfyUI) -> str:
    """Three movies, an animation, a still, and a file that is no movie."""
    place = comfyui.base / "input" / "clips"
    place.mkdir(parents=True, exist_ok=True)
    movie(place / "red.mp4", "libx264", 30, 24, "red")
    movie(place / "blue.webm", "libvpx-vp9", 12, 16, "blue")
    movie(place / "short.mp4", "libx264", 3, 16, "green")
    images = [frame(k, "orange", (64, 64)) for k in range(10)]
    images[0].save(place / "orange.webp", save_all=True, append_images=images[1:], duration=62)
    frame(0, "purple", (64, 64)).save(place / "still.png")
    (place / "broken.mov").write_bytes(b"nothing")
    for name in ("red", "blue", "short", "orange", "still", "broken"):
        (place / f"{name}.txt").write_text(f"a {name} ball")
    return "clips"


@pytest.mark.parametrize(("family", "gives"), [("wan", "nothing"), ("wan_i2v", "start frame")])
def test_clips_train_with_rollouts_and_films(comfyui: ComfyUI, folder: str, family: str, gives: str) -> None:
    graph = PromptBuilder(comfyui.object_info())
    base = graph.add("TestTinyModel", family=family, dtype="float32")
    clip, vae = graph.add("TestTinyClip", family=family), graph.add("TestTinyVideoVae")
    source = graph.add("RolloutFromComfyModel", model=base, clip=clip, vae=vae)
    dataset = graph.add("RolloutDatasetFromFolder", folder=folder, clip_frames=13, clip_gives=gives)
    data = graph.add("RolloutEncodeDataset", model=source, dataset=dataset, resolution=64)
    run = graph.add(
        "RolloutTrainLoRA",
        model=source,
        data=data,
        run_name=f"clips_{family}",
        steps=4,
        batch_size=1,
        caption_dropout=0.3,
        preview_every=2,
        scheduled_sampling=graph.add("RolloutScheduledSampling", max_step_offset=2, probability=0.8),
    )
    graph.add("PreviewAny", source=[run[0], 2])
    shown = comfyui.queue(graph.prompt)["outputs"]
    text = shown[dataset[0]]["text"][0]
    assert text.startswith("1 pictures and 4 clips, 5 samples an epoch")
    assert "skipped broken.mov: it is left out (it cannot be read after 0 frames" in text
    lines = shown[data[0]]["text"][0].splitlines()
    assert lines[:3] == [
        "2 latents 16x1x8x8, 2 samples an epoch",
        "2 latents 16x3x8x8, 2 samples an epoch",
        "1 latents 16x4x8x8, 1 samples an epoch",
    ]
    assert "red.mp4: 13 of 20 frames at 16 per second" in lines
    assert "blue.webm: 9 of 12 frames at 16 per second" in lines
    assert (
        "short.mp4: its first frame as a still, as 3 frames at 16 per second are too few for a clip" in lines
    )
    assert shown[data[0]]["images"]
    assert "step 4 of 4" in shown[run[0]]["text"][0]
    assert list((comfyui.base / "output").rglob(f"*clips_{family}*/film/step-00000004/film.json"))
