"""Every workflow that ships runs in a real ComfyUI through its stock loaders, and its LoRA loads in the stock loader.

Model files are small ones with random weights under the names that the workflows give (`shipped.FILES`): what is shown
is that everything is wired as it must be, not what a large model would learn.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comfyui_process import ComfyUI, History, HostError, Prompt
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from shipped import NAMES, WORKFLOWS, make_files, model_files, prompt_of, shortened, unknown

from rollout_trainer.host.graph.catalog import from_object_info
from rollout_trainer.host.graph.reading import parse, read_file
from rollout_trainer.host.graph.validate import problems

Pictures = list[NDArray[np.uint8]]


def find(prompt: Prompt, class_type: str, title: str = "") -> list[str]:
    """Ids of the nodes of a class (and title)."""
    return [
        id
        for id, node in prompt.items()
        if node["class_type"] == class_type and title in node.get("_meta", {}).get("title", "")
    ]


def pictures(host: ComfyUI, entry: History, node: str) -> Pictures:
    """What a node has saved or shown."""
    files = entry["outputs"][node]["images"]
    return [np.asarray(Image.open(io.BytesIO(host.view(file))).convert("RGB")) for file in files]


@pytest.mark.timeout(600)  # Qwen's edits see a reference of a megapixel, whatever is asked
@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_workflow_runs(comfyui: ComfyUI, name: str) -> None:
    require(comfyui, name)
    catalog = from_object_info(comfyui.object_info())
    assert problems(parse(read_file(WORKFLOWS / f"{name}.json"), catalog), catalog) == []
    prompt = shortened(prompt_of(comfyui, name))
    decoded = {title: find(prompt, "VAEDecode", title) for title in ("Before", "After")}
    for title, nodes in decoded.items():
        for node in nodes:
            prompt[title] = saving([node, 0], f"{name}/{title}")
    entry = comfyui.queue(prompt, timeout=500)
    shown = {id: output for id, output in entry["outputs"].items() if output.get("images")}
    trained = [
        node for node in find(prompt, "RolloutTrainLoRA") if prompt[node]["inputs"].get("save_lora_as")
    ]
    assert shown or trained
    for node in shown:
        for picture in pictures(comfyui, entry, node):
            assert picture.std() > 2
    for node in [*find(prompt, "RolloutSaveLoRA"), *trained]:
        assert_trained(lora_file(entry, node))
    if decoded["After"]:
        drawn = {title: pictures(comfyui, entry, title) for title in decoded}
        assert largest(drawn["Before"], drawn["After"]) > 0
        again = drawn_with_the_stock_loader(comfyui, prompt, entry)
        assert largest(again, drawn["After"]) <= 1


def require(host: ComfyUI, name: str) -> None:
    """Write a workflow's model files; skip where this version of ComfyUI has not its nodes or its family."""
    missing = unknown(host, name)
    if missing:
        pytest.skip(f"this ComfyUI has no {', '.join(missing)}")
    try:
        make_files(host, model_files(prompt_of(host, name)))
    except HostError as err:
        if "has no attribute" not in str(err):
            raise
        pytest.skip(f"this ComfyUI does not know the family: {err}")


def saving(images: list[Any], prefix: str) -> dict[str, Any]:
    """A node that saves pictures."""
    return {"class_type": "SaveImage", "inputs": {"images": images, "filename_prefix": prefix}}


def lora_file(entry: History, node: str) -> Path:
    """What Save LoRA, or Train LoRA at its end, has written."""
    return Path(entry["outputs"][node]["text"][-1].removeprefix("saved "))


def assert_trained(file: Path) -> None:
    """The LoRA is finite and no longer what it began with: all second factors are 0 then."""
    tensors = load_file(file)
    assert all(bool(t.isfinite().all()) for t in tensors.values())
    assert (
        max(float(t.abs().max()) for name, t in tensors.items() if "lora_up" in name or "lora_B" in name) > 0
    )


def largest(a: Pictures, b: Pictures) -> int:
    """The largest difference in levels of 255."""
    assert len(a) == len(b) > 0
    return int(max(np.abs(x.astype(int) - y.astype(int)).max() for x, y in zip(a, b, strict=True)))


def drawn_with_the_stock_loader(host: ComfyUI, prompt: Prompt, trained: History) -> Pictures:
    """What the workflow draws after training, its files in ComfyUI's own LoRA loader, and no complaint of them."""
    prompt = json.loads(json.dumps(prompt))
    saved = {
        prompt[node]["inputs"]["run"][0]: lora_file(trained, node) for node in find(prompt, "RolloutSaveLoRA")
    }
    for apply in find(prompt, "RolloutApplyLoRA"):
        own = prompt[apply]["inputs"]
        name = saved[own["run"][0]].relative_to(host.base / "output" / "loras").as_posix()
        inputs = {"model": own["model"], "lora_name": name, "strength_model": 1.0}
        prompt[apply] = {"class_type": "LoraLoaderModelOnly", "inputs": inputs}
    needed = needed_by(prompt, "After")
    log = len(host.log())
    entry = host.queue({id: node for id, node in prompt.items() if id in needed}, timeout=300)
    assert "not loaded" not in host.log()[log:]
    return pictures(host, entry, "After")


def needed_by(prompt: Prompt, node: str) -> set[str]:
    """Ids of a node and all that it depends on."""
    found, pending = {node}, [node]
    while pending:
        links = [v[0] for v in prompt[pending.pop()]["inputs"].values() if isinstance(v, list)]
        pending += [id for id in links if id not in found]
        found |= set(links)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_template_has_a_thumbnail_and_a_note(comfyui: ComfyUI, name: str) -> None:
    place = f"/api/workflow_templates/{comfyui.pack_folder}/{name}"
    assert Image.open(io.BytesIO(comfyui.request(f"{place}.jpg"))).size == (640, 400)
    assert json.loads(comfyui.request(f"{place}.json")) == json.loads(
        (WORKFLOWS / f"{name}.json").read_text()
    )
    nodes = json.loads((WORKFLOWS / f"{name}.json").read_text())["nodes"]
    assert any(node["type"] == "MarkdownNote" for node in nodes)
