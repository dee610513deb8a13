"""The pack loads in a real ComfyUI, from a folder name with dots and dashes."""

import ast
import io
import re
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


def node_ids() -> set[str]:
    """Ids of all nodes of the pack, read from the schemas in nodes/."""
    ids = set()
    for path in (ROOT / "nodes").rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call):
                values = [keyword.value for keyword in call.keywords if keyword.arg == "node_id"]
                ids |= {value.value for value in values if isinstance(value, ast.Constant)}
    return ids


@pytest.fixture(scope="module")
def object_info(comfyui):
    return comfyui.object_info()


def test_every_node_of_the_pack_is_offered(object_info):
    ids = node_ids()
    assert ids, "no node_id found in nodes/"
    assert ids <= object_info.keys()
    assert all(name.startswith("Rollout") for name in ids)


def test_the_host_offers_no_node_of_ours_that_the_sources_do_not_name(comfyui, object_info):
    ours = {name for name, info in object_info.items() if comfyui.pack_folder in info["python_module"]}
    assert ours == node_ids()


def test_nothing_failed_while_the_pack_was_loaded(comfyui):
    mentions = [line for line in comfyui.log().splitlines() if comfyui.pack_folder in line]
    assert any("seconds" in line for line in mentions), "the host does not list the pack"
    trouble = re.compile("IMPORT FAILED|Cannot import|Error|Skip", re.IGNORECASE)
    assert [line for line in mentions if trouble.search(line)] == []


def test_every_script_is_served_once(comfyui):
    ours = [path for path in comfyui.get_json("/extensions") if f"/{comfyui.pack_folder}/" in path]
    assert len(ours) == len(set(ours)) == len(list((ROOT / "web").rglob("*.js")))


def test_every_workflow_is_offered_as_a_template(comfyui):
    offered = comfyui.get_json("/workflow_templates").get(comfyui.pack_folder, [])
    assert sorted(offered) == sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))


def test_every_locale_is_served(comfyui):
    translations = comfyui.get_json("/i18n")
    for folder in (path for path in (ROOT / "locales").glob("*") if path.is_dir()):
        if (folder / "nodeDefs.json").exists():
            assert any(name.startswith("Rollout") for name in translations[folder.name]["nodeDefs"])


def test_a_stock_graph_still_runs_and_reports_its_progress(comfyui):
    blue = {"width": 48, "height": 32, "batch_size": 1, "color": 0x0000FF}
    prompt = {
        "1": {"class_type": "EmptyImage", "inputs": blue},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }
    with comfyui.events() as events:
        entry = comfyui.queue(prompt)
        assert events.wait_for(lambda seen: any(data["node"] is None for data in seen.of_type("executing")))
    picture = Image.open(io.BytesIO(comfyui.view(entry["outputs"]["2"]["images"][0])))
    assert picture.size == (48, 32)
    assert picture.getpixel((0, 0))[2] == 255
