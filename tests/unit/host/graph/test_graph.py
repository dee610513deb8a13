import json

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from rollout_trainer.host.graph.catalog import InputSpec, NodeSpec, from_object_info
from rollout_trainer.host.graph.front_end import widget_values
from rollout_trainer.host.graph.normal import GraphError, Link
from rollout_trainer.host.graph.reading import parse, read_file


def png(path, **chunks):
    info = PngInfo()
    for name, content in chunks.items():
        info.add_text(name, json.dumps(content))
    Image.new("RGB", (2, 2)).save(path, pnginfo=info)
    return path


def test_the_front_ends_format_means_what_the_front_end_would_queue(saved, catalog):
    graph = parse(saved("everything.json"), catalog)
    assert set(graph.nodes) == {"1", "3", "5", "7", "11"}
    assert graph.nodes["1"].inputs == {"rate": 0.125, "mode": "fast", "ema": False, "note": "hello"}
    train = graph.nodes["3"]
    assert train.inputs == {"settings": Link("1", 0), "seed": 41, "steps": Link("7", 0), "folder": "."}
    assert train.title == "Train it"
    assert graph.nodes["5"].inputs == {"images": Link("3", 1), "filename_prefix": "kept"}


@pytest.mark.parametrize("names", [True, False], ids=["values by name too", "values by position"])
def test_a_file_saved_by_the_front_end_gives_the_prompt_that_it_queued(saved, catalog, names):
    content = saved("front_end.json")
    if not names:
        for level in [content, *content["definitions"]["subgraphs"]]:
            for node in level["nodes"]:
                node.pop("widgets_values_named", None)
    queued = saved("front_end_prompt.json")
    read = parse(content, catalog).to_api()
    assert {id: (node["class_type"], node["inputs"]) for id, node in read.items()} == {
        id: (node["class_type"], node["inputs"]) for id, node in queued.items()
    }
    assert read["3"]["_meta"]["title"] == "Save it"


def test_a_muted_source_leaves_its_input_empty(saved, catalog):
    content = saved("everything.json")
    next(node for node in content["nodes"] if node["id"] == 11)["inputs"][0]["link"] = 7
    assert parse(content, catalog).nodes["11"].inputs == {}


def test_a_bypassed_node_without_a_fitting_input_passes_nothing(saved, catalog):
    content = saved("everything.json")
    bypassed = next(node for node in content["nodes"] if node["id"] == 4)
    bypassed["inputs"][1]["type"] = "LATENT"
    assert "images" not in parse(content, catalog).nodes["5"].inputs


def test_subgraphs_are_unpacked_with_the_values_of_each_instance(saved, catalog):
    graph = parse(saved("subgraphs.json"), catalog)
    assert set(graph.nodes) == {"1:5:1", "1:6", "2", "3:5:1", "3:6", "4", "5"}
    assert graph.nodes["1:5:1"].inputs["rate"] == 0.75
    assert graph.nodes["3:5:1"].inputs["rate"] == 0.875
    assert graph.nodes["1:6"].inputs["steps"] == Link("5", 0)
    assert graph.nodes["3:6"].inputs["steps"] == 5
    assert graph.nodes["1:6"].inputs["seed"] == 3
    assert graph.nodes["3:6"].inputs["seed"] == 11
    assert graph.nodes["1:6"].inputs["settings"] == Link("1:5:1", 0)
    assert graph.nodes["2"].inputs["images"] == Link("1:6", 1)


def test_a_subgraph_without_own_values_gives_all_its_inner_inputs_the_first_widgets_value(saved, catalog):
    content = saved("subgraphs.json")
    outer = content["definitions"]["subgraphs"][0]
    outer["inputs"][1]["linkIds"].append(9)
    outer["links"].append({"id": 9, "origin_id": -10, "origin_slot": 1, "target_id": 7, "target_slot": 0})
    outer["nodes"].append(
        {"id": 7, "type": "PreviewAny", "inputs": [{"name": "source", "type": "*", "link": 9}], "outputs": []}
    )
    graph = parse(content, catalog)
    assert graph.nodes["3:7"].inputs["source"] == graph.nodes["3:6"].inputs["steps"] == 5
    assert graph.nodes["1:7"].inputs["source"] == Link("5", 0)


def test_a_subgraph_that_contains_itself_is_refused(saved, catalog):
    content = saved("subgraphs.json")
    content["definitions"]["subgraphs"][1]["nodes"][0]["type"] = "outer"
    with pytest.raises(GraphError, match="must not contain itself"):
        parse(content, catalog)


def test_the_api_format_is_read_with_or_without_its_envelope(api_graph, catalog):
    graph = parse(api_graph, catalog)
    assert graph == parse({"prompt": api_graph, "client_id": "x"}, catalog)
    assert graph.nodes["2"].inputs["settings"] == Link("1", 0)
    assert graph.nodes["2"].title == "My training"


def test_a_graph_survives_the_way_through_the_api_format(saved, catalog):
    for name in ("everything.json", "subgraphs.json"):
        graph = parse(saved(name), catalog)
        assert parse(json.loads(json.dumps(graph.to_api())), catalog) == graph


def test_a_png_gives_the_prompt_first_and_the_workflow_else(tmp_path, saved, api_graph, catalog):
    both = read_file(png(tmp_path / "both.png", workflow=saved("everything.json"), prompt=api_graph))
    assert both == api_graph
    only = read_file(png(tmp_path / "only.png", workflow=saved("everything.json")))
    assert parse(only, catalog) == parse(saved("everything.json"), catalog)
    with pytest.raises(GraphError, match="got neither in"):
        read_file(png(tmp_path / "none.png"))


def spec(*inputs):
    return NodeSpec("Toy", "Toy", inputs, (), False)


def test_control_values_are_skipped_only_where_the_front_end_puts_them():
    inputs = (
        InputSpec("seed", "INT", widget=True, control=True),
        InputSpec("mode", "COMBO", widget=True, options=("fixed", "free")),
    )
    assert widget_values(spec(*inputs), {"widgets_values": [5, "randomize", "fixed"]}) == {
        "seed": 5,
        "mode": "fixed",
    }
    plain = (InputSpec("count", "INT", widget=True), inputs[1])
    assert widget_values(spec(*plain), {"widgets_values": [5, "fixed"]}) == {"count": 5, "mode": "fixed"}


def test_widgets_added_after_the_file_was_saved_keep_their_defaults():
    inputs = (InputSpec("a", "INT", widget=True, default=1), InputSpec("b", "INT", widget=True, default=2))
    assert widget_values(spec(*inputs), {"widgets_values": [9]}) == {"a": 9, "b": 2}
    assert widget_values(spec(*inputs), {}) == {"a": 1, "b": 2}


def test_values_by_name_are_used_when_they_agree_with_those_by_position():
    inputs = (InputSpec("a", "INT", widget=True), InputSpec("b", "INT", widget=True))
    drawn_by_js = {"widgets_values": [0, 1, 2], "widgets_values_named": {"extra": 0, "a": 1, "b": 2}}
    assert widget_values(spec(*inputs), drawn_by_js) == {"a": 1, "b": 2}
    edited = {"widgets_values": [3, 4], "widgets_values_named": {"a": 1, "b": 2}}
    assert widget_values(spec(*inputs), edited) == {"a": 3, "b": 4}


def test_nodes_of_a_running_host_are_read_from_its_object_info():
    info = {
        "Old": {
            "input": {
                "required": {"seed": ["INT", {"min": 0}], "name": [["x", "y"], {"image_upload": True}]}
            },
            "output": ["IMAGE", ["x"]],
            "output_name": ["IMAGE", "name"],
            "output_node": True,
            "display_name": "Old One",
        },
        "New": {
            "input": {
                "required": {
                    "model": ["MODEL"],
                    "size": [
                        "COMFY_DYNAMICCOMBO_V3",
                        {
                            "options": [
                                {"key": "custom", "inputs": {"required": {"width": ["INT", {}]}}},
                                {"key": "square", "inputs": {}},
                            ]
                        },
                    ],
                },
                "optional": {"text": ["STRING", {"forceInput": True}], "count": ["INT", {"default": 1}]},
            },
            "output": [],
        },
    }
    found = from_object_info(info)
    assert found["Old"].is_output
    assert found["Old"].outputs[1].type == "COMBO"
    assert found["Old"].inputs[0].control
    assert not found["New"].input("text").widget
    raw = {"widgets_values": ["custom", 640, 2]}
    assert widget_values(found["New"], raw) == {"size": "custom", "size.width": 640, "count": 2}
    assert widget_values(found["New"], {"widgets_values": ["square", 2]}) == {"size": "square", "count": 2}
