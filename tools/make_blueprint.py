"""Make ``subgraphs/``: nodes of this pack as one, which ComfyUI lists among its subgraph blueprints.

``python tools/make_blueprint.py`` builds them in the real front end, as a user would: nodes, made into a subgraph,
whose inputs show the widgets that matter. ComfyUI wants a workflow of that one node; the file's name is the node's.
Needs the packages of requirements-dev.txt and Debian's chromium.
"""

from __future__ import annotations

import json
from pathlib import Path

from save_workflow import front_end

ROOT = Path(__file__).resolve().parents[1]
NAME = "Train a LoRA from a folder"
BUILD = """async ([name, description, aliases]) => {
    const make = (type, x, values = {}) => {
        const node = LiteGraph.createNode(type);
        app.graph.add(node);
        node.pos = [x, 0];
        for (const [widget, value] of Object.entries(values)) node.widgets.find((w) => w.name === widget).value = value;
        return node;
    };
    app.graph.clear();
    const pictures = make("RolloutDatasetFromFolder", 0);
    const train = make("RolloutTrainLoRA", 400, {
        steps: 1500, gradient_checkpointing: true, autocast: "bf16", caption_dropout: 0.05, memory: "auto",
        save_every: 250, preview_every: 250, run_name: "my_pictures", save_lora_as: "my_lora",
    });
    pictures.connect(0, train, "data");
    const { node, subgraph } = app.graph.convertToSubgraph(new Set([pictures, train]));
    const inner = (type) => subgraph.nodes.find((one) => one.type === type);
    const show = (type, id, input, output) => {
        const target = inner(type);
        subgraph.addInput(id, input).connect(target.inputs[target.findInputSlot(id)], target);
    };
    for (const [id, type] of [["model", "MODEL"], ["clip", "CLIP"], ["vae", "VAE"]]) show("RolloutTrainLoRA", id, type);
    for (const [id, type] of [["folder", "STRING"], ["default_caption", "STRING"], ["trigger_word", "STRING"]])
        show("RolloutDatasetFromFolder", id, type);
    for (const [id, type] of [["steps", "INT"], ["save_lora_as", "STRING"]]) show("RolloutTrainLoRA", id, type);
    const trained = inner("RolloutTrainLoRA");
    const outputs = [["run", "ROLLOUT_RUN"], ["model", "ROLLOUT_MODEL"], ["summary", "STRING"]];
    for (const [slot, [id, type]] of outputs.entries())
        subgraph.addOutput(id, type).connect(trained.outputs[slot], trained);
    subgraph.name = name;
    node.title = name;
    node.pos = [0, 0];
    await new Promise((resolve) => setTimeout(resolve, 500));
    node.setSize([380, node.computeSize()[1]]);
    const saved = JSON.parse(JSON.stringify(app.graph.serialize()));
    Object.assign(saved.definitions.subgraphs[0], { category: "Training", description });
    saved.extra = { BlueprintDescription: description, BlueprintSearchAliases: aliases };
    return saved;
}"""
DESCRIPTION = (
    "Trains a LoRA of any model on a folder of pictures, with settings that suit the model, and saves it."
)
ALIASES = ["train lora", "my pictures", "finetune", "lora training", "dreambooth"]

if __name__ == "__main__":
    with front_end() as new_page:
        made = new_page().evaluate(BUILD, [NAME, DESCRIPTION, ALIASES])
    file = ROOT / "subgraphs" / f"{NAME}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{file.name}: {len(made['definitions']['subgraphs'][0]['nodes'])} nodes")
