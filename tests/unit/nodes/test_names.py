"""How nodes are found: names nobody confuses, a place in the menu, words that people search for."""

import types

import pytest

from rollout_trainer.host.graph.catalog import from_nodes
from rollout_trainer.host.graph.normal import Graph, Node
from rollout_trainer.host.graph.override import override
from rollout_trainer.nodes import NODES, schemas

CORE = {"Train LoRA", "Save LoRA", "Sample", "Compare Images", "Validate", "Load LoRA", "Plot Loss Graph"}
"""What ComfyUI and common packs call theirs."""


def test_every_node_has_a_place_words_and_a_name_of_its_own():
    own = {node.define_schema().node_id.removeprefix("Rollout") for node in NODES}
    placed = [name for names in schemas.PLACES.values() for name in names]
    assert sorted(placed) == sorted(own)
    assert schemas.ALIASES.keys() == own
    names = [node.define_schema().display_name for node in NODES]
    assert len(set(names)) == len(names)
    assert not CORE & set(names)
    assert {node.define_schema().category for node in NODES} == {
        f"training/rollout/{p}" for p in schemas.PLACES
    }


@pytest.mark.parametrize(
    "word", ["unipc", "uni_pc", "rk4", "finetune", "caption", "load images folder", "lora preview", "kohya"]
)
def test_what_people_type_finds_a_node(word):
    assert [name for name, words in schemas.ALIASES.items() if word in words]


def test_search_words_go_to_a_host_that_takes_them(monkeypatch):
    def newer(node_id, category, search_aliases=(), **given):
        return types.SimpleNamespace(node_id=node_id, search_aliases=search_aliases, **given)

    assert not hasattr(schemas.schema("RolloutSigmas"), "search_aliases")
    monkeypatch.setattr(schemas.io, "Schema", newer)
    assert schemas.schema("RolloutSigmas").search_aliases == list(schemas.ALIASES["Sigmas"])


@pytest.mark.parametrize("name", ["RolloutSaveLoRA", "Save LoRA (Rollout)", "Save LoRA"])
def test_a_node_without_a_title_is_named_by_its_old_name_too(name):
    graph = Graph({"1": Node("1", "RolloutSaveLoRA", {"filename": "a"})})
    changed = override(graph, from_nodes(NODES), f"{name}.filename=b")
    assert changed.nodes["1"].inputs["filename"] == "b"
