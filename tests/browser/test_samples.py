"""The user's own prompts in the panel, in every look, and every word there explained; a LoRA file dropped on the page.

One training serves all looks: a page that is opened later shows the run again.
"""

from __future__ import annotations

import base64
import json
import re
import time
import uuid

import pytest
from comfyui_process import PACK_FOLDER
from test_front import PANEL, PREPARE, TRAIN, browser, data, look_at, quickstart, shots, visit, wait_for_state
from test_panel import LUMINANCE
from test_run_browser import TAB, TAB_BUTTON

__all__ = ["browser", "shots"]  # the fixtures

pytestmark = pytest.mark.timeout(1200)  # of the training too

PROMPTS = ["a red apple, flat style", "a blue car, flat style"]
STEPS = [0, 3, 6]
LOOKS = [  # every pair of canvas, palette and language
    ("classic", "dark", "en"),
    ("classic", "light", "ja"),
    ("nodes2", "dark", "ja"),
    ("nodes2", "light", "en"),
]
ADD_PROMPTS = """([train, prompts, every]) => {
    const node = LiteGraph.createNode("RolloutSamplePrompts");
    node.pos = [app.graph.getNodeById(train).pos[0] - 400, app.graph.getNodeById(train).pos[1] + 900];
    app.graph.add(node);
    const values = { prompts: prompts.join("\\n"), every, steps: 4 };
    for (const widget of node.widgets) if (widget.name in values) widget.value = values[widget.name];
    node.connect(0, app.graph.getNodeById(train), "sample_prompts");
}"""
UNEXPLAINED = """panel => {
    const found = [];
    const walker = document.createTreeWalker(panel.shadowRoot, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const { textContent, parentElement } = walker.currentNode;
        if (!/[^\\s\\u00b7]/.test(textContent) || parentElement.closest("style")) continue;
        if (!parentElement.closest('[title]:not([title=""])')) found.push(textContent);
    }
    return found;
}"""
TITLES = "panel => [...panel.shadowRoot.querySelectorAll('[title]')].map((e) => e.title).filter(Boolean)"
SLOT = """([id, slot]) => {
    const node = app.graph.getNodeById(id);
    const [x, y] = node.getConnectionPos(false, slot);
    const { scale, offset } = app.canvas.ds;
    const box = app.canvas.canvas.getBoundingClientRect();
    return [box.x + (x + offset[0]) * scale - 6, box.y + (y + offset[1]) * scale];
}"""
DROP = """async ([name, content]) => {
    const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
    const files = new DataTransfer();
    files.items.add(new File([bytes], name));
    const options = { dataTransfer: files, bubbles: true, cancelable: true, clientX: 700, clientY: 500 };
    for (const kind of ["dragenter", "dragover", "drop"]) app.canvas.canvas.dispatchEvent(new DragEvent(kind, options));
}"""
COLOURS = """start => {
    let behind = start;
    while (behind.parentElement && getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)")
        behind = behind.parentElement;
    return [getComputedStyle(start).color, getComputedStyle(behind).backgroundColor];
}"""
ACTIONS = {
    "en": ["Resume", "Save LoRA", "Compare", "Copy path", "Delete"],
    "ja": ["再開", "LoRA を保存", "比較", "パスをコピー", "削除"],
}
TYPES = "() => app.graph.nodes.map((node) => node.type)"
TOAST = ".p-toast-message, [data-testid=toast]"


@pytest.fixture(scope="module")
def open_look(browser, comfyui):
    """``open_look(mode, palette, locale, workflow)``: a page; at the end, that our scripts were silent."""
    said, contexts = [], []

    def opened(mode, palette, locale, workflow):
        context = browser.new_context(viewport={"width": 1500, "height": 1250})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: said.append(m.text) if PACK_FOLDER in m.location["url"] else None)
        page.on("pageerror", lambda e: said.append(str(e)) if PACK_FOLDER in (e.stack or "") else None)
        visit(page, comfyui.url)
        page.evaluate(PREPARE, [mode == "nodes2", locale])
        page.evaluate("name => app.extensionManager.setting.set('Comfy.ColorPalette', name)", palette)
        visit(page, comfyui.url)  # settings are read when the page is loaded
        if mode == "nodes2" and not page.evaluate("!!LiteGraph.vueNodesMode && !!app.rootGraph"):
            pytest.skip("this front end has no Nodes 2.0 that draws the widgets of packs")
        page.evaluate("workflow => app.loadGraphData(workflow)", workflow)
        page.wait_for_timeout(1500)
        return page

    yield opened
    for context in contexts:
        context.close()
    comfyui.clear()
    assert said == []


@pytest.fixture(scope="module")
def trained(open_look, comfyui):
    """The quick start with two prompts, trained for eight steps; the workflow, and the LoRA file that it saved."""
    workflow = quickstart() | {"id": str(uuid.uuid4())}
    for node in workflow["nodes"]:
        if node["id"] == TRAIN:
            node["widgets_values"][0] = 8
            node["widgets_values"][10] = "prompts"
            node["widgets_values"][12] = 4  # films too
        elif node["type"] == "RolloutSample":
            node["widgets_values"][4] = 1
    loras = comfyui.base / "output" / "loras"
    before = set(loras.glob("*.safetensors"))  # of tests before this one
    page = open_look("classic", "dark", "en", workflow)
    page.evaluate(ADD_PROMPTS, [TRAIN, PROMPTS, 3])
    page.evaluate("app.queuePrompt(0, 1)")
    wait_for_state(page, "done", 600)
    deadline = time.monotonic() + 600
    while not (saved := set(loras.glob("*.safetensors")) - before):
        assert time.monotonic() < deadline, "no LoRA was saved"
        page.wait_for_timeout(300)
    return page.evaluate("app.graph.serialize()"), *saved


def strip(page):
    return page.locator(f"{PANEL} .samples")


@pytest.mark.parametrize(("mode", "palette", "locale"), LOOKS)
def test_prompts_are_a_strip_whose_pictures_enlarge_and_every_word_is_explained(
    mode, palette, locale, trained, open_look, shots
):
    page = open_look(mode, palette, locale, trained[0])
    page.wait_for_selector(PANEL, state="attached", timeout=20_000)
    look_at(page, TRAIN, 0.9)
    strip(page).locator("td img").first.wait_for(timeout=20_000)
    page.wait_for_timeout(1000)
    look = f"{mode}-{palette}-{locale}"
    page.screenshot(path=shots / f"samples-{look}.png")
    heads = strip(page).locator("tr").first.locator("th").all_inner_texts()
    assert heads[1:] == [str(step) for step in STEPS]
    assert strip(page).locator("th[scope=row]").all_inner_texts() == PROMPTS
    assert strip(page).locator("td img").count() == len(PROMPTS) * len(STEPS)
    sizes = strip(page).locator("td img").evaluate_all("all => all.map((e) => e.complete && e.naturalWidth)")
    assert sizes == [128] * len(PROMPTS) * len(STEPS)
    words = {"en": "training step", "ja": "学習ステップ"}[locale]

    strip(page).locator("td button").first.click()  # before ...
    dialog = page.locator(f"{PANEL} dialog")
    assert dialog.is_visible()
    assert dialog.inner_text() == f"{PROMPTS[0]} · {words} {STEPS[0]}"
    page.wait_for_timeout(500)
    assert dialog.locator("img").bounding_box()["width"] > 400
    page.screenshot(path=shots / f"enlarged-{look}.png")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")  # ... beside after
    page.keyboard.press("ArrowDown")
    assert dialog.inner_text() == f"{PROMPTS[1]} · {words} {STEPS[-1]}"
    page.keyboard.press("Escape")
    assert dialog.is_hidden()

    panel = page.locator(PANEL)
    assert panel.evaluate(UNEXPLAINED) == []
    titles = panel.evaluate(TITLES)
    assert [title for title in titles if re.fullmatch(r"[a-z]+[A-Za-z]*(Title|How|Keys)", title)] == []
    if locale == "ja":
        japanese = [title for title in titles if re.search("[ぁ-ん]", title)]
        assert len(japanese) > 15
    assert data(page, "state") == "done"
    sidebar_explains_itself(page, locale)
    page.screenshot(path=shots / f"sidebar-{look}.png")


def sidebar_explains_itself(page, locale):
    """Of the run that was trained, all that can be done is there, readable, and says what it does."""
    page.locator(TAB_BUTTON).click()
    page.locator(f"{TAB} li").filter(has=page.get_by_text("prompts-0001", exact=True)).click()
    for name in ACTIONS[locale]:
        button = page.locator(f"{TAB} .details button").filter(has_text=name)
        button.wait_for(timeout=10_000)
        assert button.is_enabled()
        assert len(button.get_attribute("title")) > 10
    assert page.locator(f"{TAB} .name[title]").count() == 3  # base, FC, ADR
    ink, paper = page.locator(f"{TAB} h3").evaluate(COLOURS)
    assert contrast(page.evaluate(LUMINANCE, ink), page.evaluate(LUMINANCE, paper)) >= 4.5  # WCAG 1.4.3


def contrast(one, other):
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


def test_every_output_says_what_it_is_for_where_the_pointer_rests(trained, open_look, comfyui, shots):
    said = comfyui.get_json("/object_info")
    ours = {name: node for name, node in said.items() if name.startswith("Rollout")}
    assert len(ours) > 30
    assert [name for name, node in ours.items() if not all(node.get("output_tooltips") or [None])] == []
    page = open_look("classic", "dark", "ja", trained[0])
    look_at(page, TRAIN, 1.0)
    page.mouse.move(*page.evaluate(SLOT, [TRAIN, 0]))
    tip = page.locator(".node-tooltip, [role=tooltip]").first
    tip.wait_for(timeout=10_000)
    assert "「LoRA を保存」" in tip.inner_text()
    page.screenshot(path=shots / "output-tooltip.png")


@pytest.mark.parametrize("mode", ["classic", "nodes2"])
def test_a_lora_file_that_is_dropped_on_the_page_opens_the_workflow_that_trained_it(
    mode, trained, open_look, comfyui, shots
):
    runs = comfyui.get_json("/rollout_trainer/runs")["runs"]
    name = next(run["name"] for run in runs if run["name"].startswith("prompts"))
    own = {"X-Rollout-Trainer": "1"}  # as the sidebar asks
    answer = json.loads(comfyui.request(f"/rollout_trainer/runs/{name}/lora/8", b"", own))
    of_a_state = trained[1].with_name(answer["file"].rpartition("/")[2])
    for file in (trained[1], of_a_state):
        page = open_look(mode, "dark", "en", {"nodes": [], "links": [], "version": 0.4})
        assert page.evaluate(TYPES) == []
        page.evaluate(DROP, [file.name, base64.b64encode(file.read_bytes()).decode()])
        page.wait_for_function("() => app.graph.nodes.length > 5", timeout=15_000)
        assert {"RolloutTrainLoRA", "RolloutSamplePrompts", "RolloutSaveLoRA"} <= set(page.evaluate(TYPES))
        page.screenshot(path=shots / f"dropped-{mode}.png")
    page = open_look(mode, "dark", "en", {"nodes": [], "links": [], "version": 0.4})
    header = b'{"__metadata__":{"ss_network_dim":"8"}}'
    strange = len(header).to_bytes(8, "little") + header  # of a trainer that keeps no workflow
    page.evaluate(DROP, ["strange.safetensors", base64.b64encode(strange).decode()])
    page.locator(TOAST).filter(has_text="strange.safetensors").first.wait_for(timeout=10_000)
    assert page.evaluate(TYPES) == []
    page.screenshot(path=shots / f"dropped-strange-{mode}.png")
