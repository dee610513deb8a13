"""Films of trainings in a real ComfyUI, and the routes by which a page gets them and asks for more."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from urllib.parse import quote

import pytest
from comfyui_process import ComfyUI, HostError
from PIL import Image
from prompt_builder import PromptBuilder
from safetensors.torch import load_file
from test_models import FAMILIES, Host, host, saved_lora, training

__all__ = ["host"]  # the fixture

PREVIEWS = (1, 4)
"""Types of the binary messages that carry a preview picture, without and with its node."""


def runs_of(comfyui: ComfyUI) -> Path:
    return comfyui.base / "output" / "rollout_trainer" / "runs"


@pytest.mark.parametrize("family", FAMILIES)
def test_films_of_a_model_leave_its_training_as_it_is(host: Host, family: str) -> None:
    """Drawn from latents alone: no VAE is there that could push the model away."""
    if not host.has(family):
        pytest.skip(f"this ComfyUI does not know {family}")
    loras = []
    for every in (0, 1):
        t = training(family, batch_size=2, preview_every=every, run_name=f"film-{family}-{every}")
        saved, _ = t.graph.add("RolloutSaveLoRA", run=t.steps(3), filename=f"film/{family}-{every}")
        loras.append(load_file(saved_lora(host.run(t.graph), saved)))
    plain, filmed = loras
    assert plain.keys() == filmed.keys()
    assert all(bool((plain[name] == filmed[name]).all()) for name in plain)
    run = runs_of(host.comfyui) / f"film-{family}-1-0001"
    films = host.comfyui.get_json(f"/rollout_trainer/runs/{run.name}/film")
    if not films:  # a family whose latents this host cannot show
        assert "has no preview of its latents" in host.comfyui.log()
        pytest.skip(f"{family} has no latent preview here")
    assert [film["step"] for film in films] == [0, 1, 2, 3]
    with Image.open(io.BytesIO(frame(host.comfyui, run.name, 3, films[3]["frames"] - 1))) as picture:
        width, height = picture.size
        assert width == 3 * (width // 3)
        assert height > 1


def frame(comfyui: ComfyUI, run: str, step: int, number: int) -> bytes:
    return comfyui.request(f"/rollout_trainer/runs/{run}/film/{step}/{number}")


@pytest.fixture(scope="module")
def filmed(comfyui: ComfyUI) -> str:
    """Name of a run with films of the steps 0 and 2."""
    graph = demo_training(comfyui, "film-routes", steps=2, preview_every=2)
    with comfyui.events() as events:
        comfyui.queue(graph.prompt)
        kinds = {struct.unpack(">I", data[:4])[0] for data in events.binary}
    assert kinds & set(PREVIEWS)  # the newest frame went with the progress
    return "film-routes-0001"


def demo_training(comfyui: ComfyUI, name: str, **settings: object) -> PromptBuilder:
    graph = PromptBuilder(comfyui.object_info())
    model = graph.add("RolloutLoadDiffusers")
    dataset = graph.add("RolloutDatasetFromFolder")
    data = graph.add("RolloutEncodeDataset", model=model, dataset=dataset)
    train = graph.add("RolloutTrainLoRA", model=model, data=data, run_name=name, **settings)
    graph.add("RolloutSaveLoRA", run=train, filename=name)
    return graph


def test_a_film_is_listed_and_its_frames_are_jpegs(comfyui: ComfyUI, filmed: str) -> None:
    films = comfyui.get_json(f"/rollout_trainer/runs/{filmed}/film")
    assert [(film["step"], film["frames"]) for film in films] == [(0, 6), (2, 6)]
    for number in range(6):
        with Image.open(io.BytesIO(frame(comfyui, filmed, 2, number))) as picture:
            assert (picture.format, picture.size) == ("JPEG", (384, 128))
    kept = json.loads((runs_of(comfyui) / filmed / "panel.json").read_text())
    assert (kept["state"], kept["step"], kept["film"], kept["saved"]) == ("done", 2, [0, 2], 2)


RUN = "film-routes-0001"
OUTSIDE = ["..", ".", f"../runs/{RUN}", "/etc", f"{RUN}/film", f"..\\{RUN}", f"{RUN}\0", "C:", "nowhere"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_only_runs_of_the_runs_folder_are_found(comfyui: ComfyUI, filmed: str, name: str) -> None:
    for place in ("film", "film/2/0"):
        with pytest.raises(HostError, match=r": 40[34] "):
            comfyui.request(f"/rollout_trainer/runs/{quote(name, safe='')}/{place}")


@pytest.mark.parametrize(
    "place",
    ["2/6", "1/0", "-1/0", "2/-1", "2/0.jpg", "2/film.json", "2/..%2Ffilm.json", "..%2F..%2F2/0", "2e0/0", "2/00000",
     "9999999999999/0", "2/%2e%2e", "%D9%A2/0"],
)  # fmt: skip
def test_only_frames_of_its_films_are_found(comfyui: ComfyUI, filmed: str, place: str) -> None:
    with pytest.raises(HostError, match=r": 404 "):
        comfyui.request(f"/rollout_trainer/runs/{filmed}/film/{place}")


GOOD = {"node": "4", "prompt_id": "p", "what": "save"}
BAD: list[object] = [
    {},
    [],
    None,
    "save",
    {**GOOD, "what": "rm"},
    {**GOOD, "what": ["save"]},
    {**GOOD, "node": 4},
    {**GOOD, "path": "/etc"},
    {"node": "4", "what": "save"},
    {**GOOD, "node": "x" * 600},
]


@pytest.mark.parametrize("asked", BAD, ids=lambda asked: json.dumps(asked)[:60])
def test_anything_else_that_is_asked_is_refused_in_one_line(comfyui: ComfyUI, asked: object) -> None:
    with pytest.raises(HostError, match=r": 400 the request body must be JSON") as refused:
        comfyui.post_json("/rollout_trainer/ask", asked)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("text/plain", json.dumps(GOOD).encode()),  # what a form of another site could send
        ("application/x-www-form-urlencoded", b"node=4&prompt_id=p&what=save"),
        ("application/json", b"{"),
        ("application/json", b"\xff\xfe\xfa"),
        ("application/json", b"[" * 499),
        ("application/json; charset=nonsense", b"{"),
    ],
)
def test_bodies_that_are_no_json_are_refused(comfyui: ComfyUI, kind: str, body: bytes) -> None:
    with pytest.raises(HostError, match=r": 400 the request body must be JSON"):
        comfyui.request("/rollout_trainer/ask", body, {"Content-Type": kind})


def test_a_training_that_does_not_run_is_not_asked(comfyui: ComfyUI, filmed: str) -> None:
    with pytest.raises(HostError, match=r": 400 this node does not train now$"):
        comfyui.post_json("/rollout_trainer/ask", GOOD)


def test_the_training_that_runs_saves_and_films_when_it_is_asked(comfyui: ComfyUI) -> None:
    graph = demo_training(comfyui, "asked", steps=5000)
    with comfyui.events() as events:
        prompt_id = comfyui.submit(graph.prompt)
        assert events.wait_for(
            lambda seen: any(d["node"] == "4" and d["value"] >= 2 for d in seen.of_type("progress")), 120
        )
        for what in ("save", "preview"):
            comfyui.post_json("/rollout_trainer/ask", {"node": "4", "prompt_id": prompt_id, "what": what})
        run = runs_of(comfyui) / "asked-0001"
        assert events.wait_for(lambda seen: list(run.glob("film/*/film.json")), 60)
        comfyui.interrupt()
        comfyui.wait(prompt_id)
    (film,) = comfyui.get_json("/rollout_trainer/runs/asked-0001/film")
    told = json.loads((run / "panel.json").read_text())
    assert told["film"] == [film["step"]]
    states = sorted(int(path.stem.removeprefix("state-")) for path in run.glob("state-*.safetensors"))
    assert (
        states == [0, film["step"], told["step"]] or len(states) == 4
    )  # both in one step, or one after the other
    assert all(json.loads((run / f"state-{s:08d}.json").read_text())["pinned"] for s in states)
    assert (told["state"], told["saved"]) == ("stopped", told["step"])
