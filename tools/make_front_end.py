"""Make `front_end.json` and `front_end_prompt.json` with a real ComfyUI front end (1.49.6 made the ones here).

    python tools/make_front_end.py http://127.0.0.1:8188 [/usr/bin/chromium]

ComfyUI must be running there, with a picture `face.png` in its input folder; needs playwright. The first file is a
workflow as the front end saves it, the second what the front end queues for it: `test_graph.py` compares our
reading of the one with the other.
"""

import json
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

GRAPHS = Path(__file__).resolve().parents[1] / "tests" / "unit" / "graphs"
READY = "window.app && app.graph && Object.keys(LiteGraph.registered_node_types).length > 50"
BUILD = """async () => {
    const make = (type, values = {}, graph = app.graph) => {
        const node = LiteGraph.createNode(type)
        graph.add(node)
        for (const [name, value] of Object.entries(values)) {
            node.widgets.find((widget) => widget.name === name).value = value
        }
        return node
    }
    const link = (from, output, to, name) => from.connect(output, to, to.inputs.findIndex((i) => i.name === name))
    app.graph.clear()
    const load = make('LoadImage', { image: 'face.png' })
    const reroute = make('Reroute')
    load.connect(0, reroute, 0)
    const save = make('SaveImage', { filename_prefix: 'unused' })
    save.title = 'Save it'
    link(reroute, 0, save, 'images')
    const prefix = make('PrimitiveNode')
    prefix.connect(0, save, save.inputs.findIndex((i) => i.name === 'filename_prefix'))
    prefix.widgets[0].value = 'from a primitive'
    const bypassed = make('SaveImage', { filename_prefix: 'bypassed' })
    link(reroute, 0, bypassed, 'images')
    bypassed.mode = 4
    const preview = make('PreviewImage')
    link(bypassed, 0, preview, 'images')
    const muted = make('PreviewImage')
    link(load, 0, muted, 'images')
    muted.mode = 2
    make('MarkdownNote')
    const loose = make('PrimitiveInt', { value: 41 })
    loose.widgets[1].value = 'increment'
    const shown = make('PreviewAny')
    link(loose, 0, shown, 'source')
    const inner = [make('PrimitiveInt', { value: 7 }), make('PrimitiveFloat', { value: 0.25 })]
    const anys = inner.map((node) => {
        const any = make('PreviewAny')
        link(node, 0, any, 'source')
        return any
    })
    const { node } = app.graph.convertToSubgraph(new Set([...inner, ...anys]))
    // Show the inner PrimitiveInt on the outside, and set it there.
    const int = node.subgraph.nodes.find((n) => n.type === 'PrimitiveInt')
    const input = node.subgraph.addInput('count', 'INT')
    input.connect(int.inputs[0], int)
    await new Promise((resolve) => setTimeout(resolve, 200))
    const promoted = node.widgets.find((widget) => widget.name === 'count' || widget.name === 'value')
    if (promoted) promoted.value = 12
    const twin = LiteGraph.createNode(node.type)
    app.graph.add(twin)
    await new Promise((resolve) => setTimeout(resolve, 200))
    const { output } = await app.graphToPrompt()
    return { prompt: output, saved: app.graph.serialize() }
}"""

if __name__ == "__main__":
    with sync_playwright() as playwright:
        path = sys.argv[2] if len(sys.argv) > 2 else None
        page = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"]).new_page()
        page.goto(sys.argv[1])
        page.wait_for_function(READY, timeout=120_000)
        page.wait_for_timeout(2000)
        made = page.evaluate(BUILD)
    for name, content in (("front_end.json", made["saved"]), ("front_end_prompt.json", made["prompt"])):
        (GRAPHS / name).write_text(json.dumps(content, indent=1) + "\n")
