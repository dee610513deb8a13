"""The front end in a real browser on a real host: watch a training, stop it, reload, read it in Japanese.

Screenshots are left in the folder that BROWSER_SHOTS names, else among pytest's temporary files.
"""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

import pytest
from comfyui_process import PACK_FOLDER
from shipped import NAMES, make_files, model_files, prompt_of

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="no playwright: pip install -r requirements-dev.txt"
)

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
READY = """() => window.app?.extensionManager && window.LiteGraph &&
    Object.keys(LiteGraph.registered_node_types).length > 50"""
PREPARE = """async ([vue, locale]) => {
    const set = (name, value) => app.extensionManager.setting.set(name, value);
    await set("Comfy.VueNodes.Enabled", vue);
    await set("Comfy.Locale", locale);
    await set("Comfy.TutorialCompleted", true);
    await set("Comfy.NodeBadge.NodeSourceBadgeMode", "None");
}"""
LOOK_AT = """([id, scale]) => {
    const node = app.graph.getNodeById(id);
    app.canvas.ds.scale = scale;
    app.canvas.ds.offset = [-node.pos[0] + 250 / scale, -node.pos[1] + 110 / scale];
    app.canvas.setDirty(true, true);
}"""
PANEL = ".rollout-trainer-panel"
TRAIN, SAMPLING, REFLEXFLOW = 8, 7, 6  # node ids in workflows/quickstart.json
MODES = ["classic", "nodes2"]


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM.exists():
        pytest.skip(f"no browser: set CHROMIUM to a Chromium, {CHROMIUM} is none")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def shots(tmp_path_factory):
    named = os.environ.get("BROWSER_SHOTS")
    folder = Path(named) if named else tmp_path_factory.mktemp("shots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def open_page(browser, comfyui):
    """``open_page(mode, locale, workflow)``: a page that shows it; at the end, that our scripts were silent."""
    said, contexts = [], []

    def opened(mode, locale="en", workflow=None):
        context = browser.new_context(viewport={"width": 1500, "height": 950})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: said.append(m.text) if PACK_FOLDER in m.location["url"] else None)
        page.on("pageerror", lambda e: said.append(str(e)) if PACK_FOLDER in (e.stack or "") else None)
        visit(page, comfyui.url)
        page.evaluate(PREPARE, [mode == "nodes2", locale])
        visit(page, comfyui.url)  # both settings are read when the page is loaded
        if mode == "nodes2" and not page.evaluate("!!LiteGraph.vueNodesMode && !!app.rootGraph"):
            pytest.skip("this front end has no Nodes 2.0 that draws the widgets of packs")
        page.evaluate("workflow => app.loadGraphData(workflow)", workflow or quickstart())
        page.wait_for_timeout(1000)
        return page

    yield opened
    for context in contexts:
        context.close()
    comfyui.clear()
    assert said == []


def visit(page, url):
    page.goto(url, timeout=120_000)  # on a machine that does other things too
    page.wait_for_function(READY, timeout=300_000)
    page.wait_for_timeout(1500)
    page.keyboard.press("Escape")  # new users are shown the templates


def shipped(name):
    return json.loads((ROOT / "workflows" / name).read_text(encoding="utf-8"))


def quickstart():
    """The shipped workflow, with small and so many steps that there is time to press a button, and every curve."""
    workflow = shipped("quickstart.json")
    reflexflow = next(node for node in workflow["nodes"] if node["type"] == "RolloutReflexFlow")
    reflexflow["mode"] = 0  # it ships bypassed
    train = next(node for node in workflow["nodes"] if node["id"] == TRAIN)
    train["widgets_values"][:2] = [5000, 1]
    return workflow


def look_at(page, node, scale=1.0):
    page.evaluate(LOOK_AT, [node, scale])
    page.wait_for_timeout(700)


def data(page, name):
    return page.locator(PANEL).get_attribute(f"data-{name}")


def wait_for_step(page, step, timeout=300.0):
    """Wait until the panel shows `step` or a later one."""
    deadline = time.monotonic() + timeout
    while int(data(page, "step") or 0) < step:
        assert time.monotonic() < deadline, f"the panel stands at step {data(page, 'step')}"
        page.wait_for_timeout(200)


def wait_for_state(page, state, timeout=180.0):
    deadline = time.monotonic() + timeout
    while data(page, "state") != state:
        assert time.monotonic() < deadline, f"the panel says {data(page, 'state')}"
        page.wait_for_timeout(100)


def points(page):
    """How many points the line of the base loss has."""
    return len(re.findall("[ML]", page.locator(f"{PANEL} path.base:not(.raw)").get_attribute("d")))


@pytest.mark.parametrize("mode", MODES)
def test_a_training_is_watched_stopped_and_seen_again_after_a_reload(mode, open_page, comfyui, shots):
    page = open_page(mode)
    look_at(page, TRAIN, 0.75)
    page.evaluate("app.queuePrompt(0, 1)")
    wait_for_step(page, 10)
    page.wait_for_timeout(300)
    early, shown = points(page), int(data(page, "step"))
    wait_for_step(page, shown + 30)
    page.wait_for_timeout(300)
    assert points(page) > early
    legend = page.locator(f"{PANEL} .name").all_inner_texts()
    assert [text.split()[0] for text in legend] == ["base", "FC", "ADR"]
    numbers = page.locator(f"{PANEL} .numbers").first.inner_text()
    assert re.search(
        r"^\d+ / 5000 · [\d.]+ steps/s · [\d:]+ left · rollout chance 50 % · time in rollouts \d+ % · memory \d+ MB$",
        numbers,
    )
    page.screenshot(path=shots / f"running-{mode}.png")

    stop = page.locator(PANEL).get_by_role("button", name="stop and save")
    stop.click()
    wait_for_state(page, "stopped")
    step = int(data(page, "step"))
    runs = comfyui.base / "output" / "rollout_trainer" / "runs"
    deadline = time.monotonic() + 20
    while not list(runs.glob(f"quickstart-*/state-{step:08d}.safetensors")):
        assert time.monotonic() < deadline, f"no state of step {step}"
        time.sleep(0.2)
    assert stop.is_disabled()

    visit(page, comfyui.url)
    page.wait_for_selector(PANEL, state="attached", timeout=20_000)
    wait_for_step(page, step)
    assert data(page, "step") == str(step)
    look_at(page, TRAIN, 0.75)
    page.locator(f"{PANEL} label").click()  # the log switch
    page.wait_for_timeout(300)
    assert points(page) >= 20
    page.screenshot(path=shots / f"reloaded-{mode}.png")
    page.evaluate("id => app.graph.remove(app.graph.getNodeById(id))", TRAIN)
    page.wait_for_timeout(500)
    assert page.locator(PANEL).count() == 0


def staged():
    """The shipped staged training, with four small steps a stage and next to no sampling."""
    workflow = shipped("staged-training.json")
    for node in workflow["nodes"]:
        values = node.get("widgets_values")
        if node["type"] == "RolloutTrainSteps":
            values[0] = 4
        elif node["type"] == "RolloutInitTraining":
            values[:2] = [12, 1]
        elif node["type"] == "RolloutSample":
            values[4] = 1
    return workflow


def test_every_stage_has_a_panel_of_the_whole_run_so_far(open_page, comfyui, shots):
    page = open_page("classic", workflow=staged())
    page.evaluate("app.queuePrompt(0, 1)")
    deadline = time.monotonic() + 120
    while states_shown(page) != ["done"] * 3:
        assert time.monotonic() < deadline, states_shown(page)
        page.wait_for_timeout(300)
    assert steps_shown(page) == {9: "4", 10: "8", 11: "12"}
    visit(page, comfyui.url)
    page.wait_for_timeout(1500)
    assert steps_shown(page) == {9: "4", 10: "8", 11: "12"}
    look_at(page, 9, 0.8)
    page.screenshot(path=shots / "staged.png")


def steps_shown(page):
    """The step that the panel of each node shows, by node."""
    return {int(node): facts.get("step") for node, facts in panels(page)}


def states_shown(page):
    return [facts.get("state") for _, facts in panels(page)]


def panels(page):
    """Nodes and what their panels show, whether on the screen or, in newer front ends, not in the page then."""
    return page.evaluate(f"""() => app.graph.nodes.flatMap((node) => (node.widgets ?? [])
        .filter((w) => w.element?.matches("{PANEL}")).map((w) => [node.id, {{ ...w.element.dataset }}]))""")


UNKNOWN = """() => app.graph.nodes.map((n) => n.type)
    .filter((type) => !LiteGraph.registered_node_types[type] && !["Note", "MarkdownNote"].includes(type))"""
NOT_OFFERED = """() => app.graph.nodes.flatMap((node) => (node.widgets ?? [])
    .filter((w) => Array.isArray(w.options?.values) && !w.options.values.includes(w.value))
    .map((w) => [node.type, w.name, w.value]))"""
LOADERS = {
    "UNETLoader",
    "CLIPLoader",
    "DualCLIPLoader",
    "VAELoader",
    "CheckpointLoaderSimple",
    "LTXAVTextEncoderLoader",
}
IN_ERROR = "() => app.graph.nodes.filter((node) => node.has_errors).map((node) => node.type)"


def without_model_files(workflow):
    """The same workflow, of which no model file is there."""
    return json.loads(re.sub(r'(?<=")(?=[^"/]+\.safetensors")', "absent-", json.dumps(workflow)))


BOXES = """() => {
    const title = 30, { ds } = app.canvas, drawn = [...document.querySelectorAll("[data-node-id]")];
    if (LiteGraph.vueNodesMode) return drawn.map((element) => {
        const { left, top, width, height } = element.getBoundingClientRect();
        const node = app.graph.getNodeById(Number(element.dataset.nodeId));
        return [node.title, node.pos[0], node.pos[1] - title, width / ds.scale, height / ds.scale];
    });
    return app.graph.nodes.map((n) => [n.title, n.pos[0], n.pos[1] - title, n.size[0], n.size[1] + title]);
}"""
"""Nodes as they are drawn, titles and footers too."""


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_opens_without_a_complaint_and_nothing_overlaps(name, mode, open_page, shots, comfyui):
    files = model_files(prompt_of(comfyui, name))
    make_files(comfyui, files)
    page = open_page(mode, workflow=without_model_files(shipped(f"{name}.json")))
    # What is not there is the user's to choose; the front end marks the loaders, or lists the files as it opens.
    lacking = page.evaluate(NOT_OFFERED)
    assert {value for _, _, value in lacking} == {f"absent-{file}" for file in files}
    assert set(page.evaluate(IN_ERROR)) <= {kind for kind, _, _ in lacking} <= LOADERS
    assert overlapping(page) == []  # a node of Nodes 2.0 that lacks a file has one line more
    page.screenshot(path=shots / f"{name}-{mode}-without-files.png")

    page.keyboard.press("Escape")  # the list of missing files
    page.wait_for_timeout(500)
    page.evaluate("workflow => app.loadGraphData(workflow)", shipped(f"{name}.json"))
    page.wait_for_timeout(1500)
    assert page.evaluate(UNKNOWN) == []
    assert page.evaluate(NOT_OFFERED) == []
    assert page.evaluate(IN_ERROR) == []
    assert page.locator(".p-dialog").count() == 0
    page.wait_for_timeout(500)
    page.keyboard.press(".")
    page.wait_for_timeout(700)
    page.screenshot(path=shots / f"{name}-{mode}.png")
    assert page.locator(".p-toast-message, [data-testid=toast]").all_inner_texts() == []
    assert len(page.evaluate(BOXES)) == len(shipped(f"{name}.json")["nodes"])
    assert overlapping(page) == []
    assert outside(page) == []


def overlapping(page):
    """Pairs of nodes that are drawn over each other."""
    boxes = page.evaluate(BOXES)
    return [
        (a, b)
        for i, (a, ax, ay, aw, ah) in enumerate(boxes)
        for b, bx, by, bw, bh in boxes[:i]
        if ax < bx + bw - 1 and bx < ax + aw - 1 and ay < by + bh - 1 and by < ay + ah - 1
    ]


GROUPS = "() => app.graph.groups.map((g) => [...(g._bounding ?? g.boundingRect)])"


def outside(page):
    """Nodes that are drawn beyond the group that they stand in: higher than their place was made for."""
    groups = page.evaluate(GROUPS)
    return [
        (title, height)
        for title, x, y, width, height in page.evaluate(BOXES)
        if not any(
            gx <= x and x + width <= gx + gw + 1 and gy <= y and y + height <= gy + gh + 1
            for gx, gy, gw, gh in groups
        )
    ]


TEXT_FROM = 0.6  # the scale below which a front end draws boxes without text
FIRST = """() => {
    const { ds, canvas } = app.canvas, [first] = app.graph.groups, [x, y, w, h] = first._bounding ?? first.boundingRect;
    const box = canvas.getBoundingClientRect();
    const left = box.left + (x + ds.offset[0]) * ds.scale, top = box.top + (y + ds.offset[1]) * ds.scale;
    return [ds.scale, left, top, left + w * ds.scale, top + h * ds.scale];
}"""


@pytest.mark.timeout(1200)  # of every template
@pytest.mark.parametrize("mode", MODES)
def test_a_template_opens_on_its_first_group_and_can_be_read(mode, open_page, comfyui, shots):
    page = open_page(mode)
    page.set_viewport_size({"width": 1920, "height": 1080})
    for name in NAMES:
        visit(page, f"{comfyui.url}/?template={name}&source={PACK_FOLDER}")
        nodes, extra = shipped(f"{name}.json")["nodes"], shipped(f"{name}.json")["extra"]
        page.wait_for_function("count => app.graph.nodes.length === count", arg=len(nodes), timeout=120_000)
        page.wait_for_timeout(1000)
        scale, left, top, right, bottom = page.evaluate(FIRST)
        page.screenshot(path=shots / f"opened-{name}-{mode}.png")
        assert scale > TEXT_FROM, name
        assert (left >= 60, top >= 90, right <= 1920, bottom <= 1080) == (True,) * 4, name
        if extra.get("linearMode"):
            continue  # what of the graph is seen in app mode is the front end's choice
        saved = page.evaluate("JSON.stringify(app.graph.serialize())")
        page.evaluate("workflow => app.loadGraphData({ ...JSON.parse(workflow), extra: "
                      "{ ...JSON.parse(workflow).extra, ds: { scale: 1.25, offset: [5, 7] } } })", saved)  # fmt: skip
        assert page.evaluate("app.canvas.ds.scale") == 1.25, "what the user saves opens as it was saved"


SEEN = """([id, mode]) => {
    const node = app.graph.getNodeById(id);
    if (mode === "classic") return node.widgets.filter((w) => !w.hidden).map((w) => w.name);
    const drawn = document.querySelector(`[data-node-id="${id}"]`);
    return node.widgets.map((w) => w.name).filter((name) =>
        [...drawn.querySelectorAll("*")].some((e) => e.children.length === 0 && e.textContent.trim() === name));
}"""
RARE = {"accumulation", "ema_decay", "keep", "hold_out", "patience", "memory"}


@pytest.mark.parametrize("mode", MODES)
def test_rare_widgets_are_out_of_sight_until_asked_for_and_changed_ones_are_seen(mode, open_page, shots):
    workflow = quickstart()
    train = next(node for node in workflow["nodes"] if node["id"] == TRAIN)
    names = [own["name"] for own in train["inputs"] if own.get("widget")]
    train["widgets_values"][names.index("ema_decay")] = 0.5
    page = open_page(mode, workflow=workflow)
    look_at(page, TRAIN, 0.8)
    seen = set(page.evaluate(SEEN, [TRAIN, mode]))
    assert {"steps", "batch_size", "caption_dropout", "ema_decay"} <= seen
    assert seen & RARE == {"ema_decay"}
    page.screenshot(path=shots / f"few-settings-{mode}.png")
    if mode == "classic":
        page.evaluate(
            "id => app.graph.getNodeById(id).widgets.find((w) => w.name === 'rollout_more').callback()", TRAIN
        )
    else:
        page.locator(f'[data-node-id="{TRAIN}"]').get_by_test_id("advanced-inputs-button").click()
    page.wait_for_timeout(700)
    assert set(page.evaluate(SEEN, [TRAIN, mode])) >= RARE
    page.screenshot(path=shots / f"all-settings-{mode}.png")
    stored = page.evaluate("id => app.graph.getNodeById(id).serialize().widgets_values", TRAIN)
    assert stored[: len(train["widgets_values"])] == train["widgets_values"]


STATUS = ".rollout-trainer-status"
SAVE = 13  # Save LoRA in workflows/quickstart.json
LINK_COLOUR = "type => app.canvas.default_connection_color_byType[type]"
COLOUR = "type => getComputedStyle(document.documentElement).getPropertyValue('--color-datatype-' + type)"
OFFERED = "() => LiteGraph.createNode('LoraLoaderModelOnly').widgets[0].options.values"


@pytest.mark.parametrize("mode", MODES)
def test_a_node_says_what_it_did_and_the_new_lora_is_offered(mode, open_page, shots):
    workflow = quickstart()
    for node in workflow["nodes"]:
        if node["id"] == TRAIN:
            node["widgets_values"][0] = 2
        elif node["type"] == "RolloutSample":
            node["widgets_values"][4] = 1
        elif node["id"] == SAVE:
            node["widgets_values"][0] = f"status-{mode}"
    page = open_page(mode, workflow=workflow)
    assert page.evaluate(COLOUR, "ROLLOUT_RUN") == page.evaluate(LINK_COLOUR, "ROLLOUT_RUN") == "#ffb74d"
    page.evaluate("app.queuePrompt(0, 1)")
    look_at(page, SAVE)
    line = page.locator(STATUS).filter(has_text=f"status-{mode}.safetensors")
    line.wait_for(timeout=120_000)
    assert line.inner_text().startswith("saved ")
    page.wait_for_timeout(1500)
    assert any(f"status-{mode}" in name for name in page.evaluate(OFFERED))
    page.screenshot(path=shots / f"status-{mode}.png")
    stored = page.evaluate("id => app.graph.getNodeById(id).serialize().widgets_values", SAVE)
    assert stored == [f"status-{mode}"]


GREYED = "id => app.graph.getNodeById(id).widgets.filter((w) => w.disabled).map((w) => [w.name, w.tooltip])"
SET = """([id, name, value]) => {
    const node = app.graph.getNodeById(id);
    const widget = node.widgets.find((w) => w.name === name);
    widget.value = value;
    widget.callback?.(value, app.canvas, node);
}"""
SERIALIZED = """id => app.graph.getNodeById(id).widgets
    .filter((w) => w.serialize !== false && w.options?.serialize !== false).map((w) => w.name)"""
COST = "() => document.querySelector('.rollout-trainer-cost').textContent"
PRESERVE = {"preserve_rows", "preserve_weight", "preserve_steps"}
"""Without effect as long as there are no captions to preserve."""


@pytest.mark.parametrize("mode", MODES)
def test_settings_without_effect_are_greyed_and_the_cost_is_said(mode, open_page, shots):
    page = open_page(mode)
    look_at(page, SAMPLING)
    greyed = dict(page.evaluate(GREYED, SAMPLING))
    assert greyed.keys() == {"prob_start", "prob_end", "ramp_shape", "gamma", *PRESERVE}
    assert "ramp_steps is 0" in greyed["prob_start"]
    # probability 0.5 x (a length of 1..3 steps, 3 of 4 times, 2 on average, and one clean forward)
    assert (
        page.evaluate(COST) == "about 1.1 extra model calls per sample, about 1.6x the time of a plain step"
    )
    page.evaluate(SET, [SAMPLING, "ramp_steps", 100])
    page.evaluate(SET, [SAMPLING, "sampler", "rk4"])
    page.wait_for_timeout(300)
    assert dict(page.evaluate(GREYED, SAMPLING)).keys() == {"probability", "order", "gamma", *PRESERVE}
    assert (
        page.evaluate(COST) == "about 3.4 extra model calls per sample, about 2.7x the time of a plain step"
    )
    page.evaluate("id => app.canvas.selectNode(app.graph.getNodeById(id))", REFLEXFLOW)
    page.locator("#graph-canvas").focus()
    page.keyboard.press("Control+b")  # bypassed
    page.wait_for_timeout(300)
    assert (
        page.evaluate(COST) == "about 3.0 extra model calls per sample, about 2.5x the time of a plain step"
    )
    page.keyboard.press("Control+b")
    page.wait_for_timeout(300)
    assert (
        page.evaluate(COST) == "about 3.4 extra model calls per sample, about 2.7x the time of a plain step"
    )
    page.evaluate(SET, [REFLEXFLOW, "enabled", "off"])
    page.wait_for_timeout(300)
    assert (
        page.evaluate(COST) == "about 3.0 extra model calls per sample, about 2.5x the time of a plain step"
    )
    page.evaluate(SET, [TRAIN, "gradient_checkpointing", True])
    assert (
        page.evaluate(COST) == "about 3.0 extra model calls per sample, about 2.0x the time of a plain step"
    )
    page.evaluate(SET, [TRAIN, "gradient_checkpointing", False])
    page.screenshot(path=shots / f"settings-{mode}.png")
    page.evaluate(SET, [SAMPLING, "max_step_offset", 0])
    assert page.evaluate(COST) == "no extra model calls: rollouts are off"
    stored = page.evaluate("id => app.graph.getNodeById(id).serialize().widgets_values", SAMPLING)
    own = [widget for widget in page.evaluate(SERIALIZED, SAMPLING) if widget.startswith("rollout_")]
    assert own == []  # the cost line is not among them
    assert len(stored) == len(page.evaluate(SERIALIZED, SAMPLING))


@pytest.mark.parametrize("mode", MODES)
def test_costly_rollouts_are_warned_of(mode, open_page, shots):
    page = open_page(mode)
    look_at(page, SAMPLING)
    line = page.locator("[role=status].rollout-trainer-cost")
    assert page.locator(".rollout-trainer-warning").count() == 0
    page.evaluate(SET, [SAMPLING, "sampler", "rk4"])
    page.evaluate(SET, [SAMPLING, "max_step_offset", 10])
    page.wait_for_timeout(500)
    assert "rollout-trainer-warning" in line.get_attribute("class")
    text = line.inner_text()
    assert text == (
        "\N{WARNING SIGN} about 10.5 extra model calls per sample, about 6.2x the time of a plain step. To make it "
        "cheaper: a sampler with one forward per step, a smaller max_step_offset, a lower probability, "
        "or reuse of 2 to 4."
    )
    assert line.evaluate("e => e.scrollHeight <= e.clientHeight + 1")  # nothing is cut off
    for palette in ("light", "dark"):
        page.evaluate("name => app.extensionManager.setting.set('Comfy.ColorPalette', name)", palette)
        page.wait_for_timeout(500)
        page.screenshot(path=shots / f"warning-{mode}-{palette}.png")


@pytest.mark.parametrize("mode", MODES)
def test_japanese_is_shown(mode, open_page, comfyui, shots):
    page = open_page(mode, "ja")
    titles = page.evaluate(
        "() => ['RolloutTrainLoRA', 'RolloutSaveLoRA', 'RolloutLossPlot'].map((t) => LiteGraph.createNode(t).title)"
    )
    assert titles == ["LoRA を学習 (Rollout)", "LoRA を保存 (Rollout)", "損失グラフ (Rollout)"]
    names = page.evaluate(
        "id => app.graph.getNodeById(id).inputs.map((i) => i.localized_name ?? i.label)", SAMPLING
    )
    assert {"確率", "最大ステップ数", "ターゲット"} <= set(names)
    assert (
        page.evaluate(COST)
        == "モデルの呼び出しが 1 サンプルあたり約 1.1 回増加、1 ステップの時間は通常の約 1.6 倍"
    )
    assert page.locator(f"{PANEL} button").all_inner_texts() == [
        "今すぐプレビュー",
        "今すぐ保存",
        "今すぐ完了",
        "停止して保存",
    ]
    pages = [f"/extensions/{PACK_FOLDER}/docs/RolloutTrainLoRA/{language}.md" for language in ("en", "ja")]
    assert [comfyui.request(path).decode().splitlines()[0] for path in pages] == [
        "# Train LoRA",
        "# LoRA を学習",
    ]
    look_at(page, SAMPLING)
    page.screenshot(path=shots / f"japanese-{mode}.png")
