"""The run browser in a real browser on a real host: look, compare, resume, copy, delete; by hand and by keyboard.

Screenshots are left where `test_front` leaves its own.
"""

from __future__ import annotations

import re
import time

import pytest
from PIL import Image
from prompt_builder import PromptBuilder
from test_front import MODES, ROOT, browser, open_page, shots
from test_run_routes import add_training

__all__ = ["browser", "open_page", "shots"]  # the fixtures

EVIL = "<img src=x onerror=alert(2)>"
TAB = ".rollout-runs"
TAB_BUTTON = ".side-bar-button:has(.pi-chart-line)"
NAMES = {"plain-0001", "rollouts-0001", f"{EVIL}-0001"}
PALETTE = "palette => app.extensionManager.setting.set('Comfy.ColorPalette', palette)"
DIALOG = "[role=dialog], [role=alertdialog]"
NODES = "() => app.graph.nodes.map((n) => [String(n.id), n.type])"
MUTED = "() => app.graph.nodes.filter((n) => n.mode === 2).map((n) => n.type)"
SAVED_FROM = "() => app.graph.nodes.find((n) => n.type === 'RolloutSaveLoRA').getInputNode(0).type"
FOCUSED = "document.activeElement.dataset.run"
# The nodes that are selected: their widgets' values, what is wired to them, and whether they are in view.
ADDED = """() => {
    const { ds, canvas } = app.canvas;
    const left = document.querySelector(".rollout-runs").getBoundingClientRect().right;
    const box = canvas.getBoundingClientRect();
    return [...app.canvas.selectedItems].map((node) => {
        const [x, y] = [0, 1].map((i) => (node.pos[i] + ds.offset[i]) * ds.scale);
        const right = x + node.size[0] * ds.scale;
        return {
            type: node.type,
            values: node.widgets.filter((w) => w.serialize !== false).map((w) => w.value),
            inputs: node.inputs.map((_, i) => node.getInputNode(i)?.type ?? null),
            visible: box.left + x > left && y > 0 && right < box.width && y < box.height,
        };
    });
}"""
STROKES = f"""() => [...document.querySelectorAll("{TAB} path")]
    .map(getComputedStyle).map((style) => [style.stroke, style.strokeDasharray])"""
SET_STEPS = """steps => {
    const node = app.graph.nodes.find((n) => n.type === "RolloutTrainSteps");
    node.widgets.find((w) => w.name === "steps").value = steps;
}"""
WATCH = f"""() => {{
    window.changes = 0;
    new MutationObserver((list) => (window.changes += list.length)).observe(
        document.querySelector("{TAB}"), {{ subtree: true, childList: true, attributes: true, characterData: true }});
}}"""


@pytest.fixture(scope="module")
def root(comfyui):
    """The host's runs folder, with some runs that it trained."""
    info = comfyui.object_info()
    for name, steps in (("plain", 30), (EVIL, 2), ("rollouts", 40)):
        graph = PromptBuilder(info)
        extra = {}
        if name == "rollouts":
            reflexflow = graph.add("RolloutReflexFlow", beta1=0.1)
            sampling = {"max_step_offset": 3, "probability": 0.5, "reflexflow": reflexflow}
            extra["scheduled_sampling"] = graph.add("RolloutScheduledSampling", **sampling)
        add_training(graph, name, steps=steps, **extra)
        comfyui.queue(graph.prompt)
    root = comfyui.base / "output" / "rollout_trainer" / "runs"
    film = root / "rollouts-0001" / "film" / "step-00000040"
    film.mkdir(parents=True, exist_ok=True)
    frame = Image.new("RGB", (3 * 128, 128))
    for i, path in enumerate(sorted((ROOT / "demo" / "data").glob("*.png"))[:3]):
        with Image.open(path) as picture:
            frame.paste(picture.convert("RGB").resize((128, 128)), (128 * i, 0))
    frame.save(film / "00.jpg")
    (film / "film.json").write_text("{}")
    return root


@pytest.fixture
def open_tab(root, open_page):
    """``open_tab(mode, locale, workflow)``: a page with the tab open and its list there."""

    def opened(mode, locale="en", workflow=None):
        page = open_page(mode, locale, workflow)
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.locator(TAB_BUTTON).click()
        page.wait_for_selector(f"{TAB} li")
        return page

    return opened


def item(page, name):
    return page.locator(f"{TAB} li").filter(has=page.get_by_text(name, exact=True))


def listed(page):
    return [text.split("\n")[0] for text in page.locator(f"{TAB} li").all_inner_texts()]


def button(page, name):
    return page.locator(f"{TAB} button").filter(has_text=name)


def wait(page, condition, seconds=15.0):
    """Wait until ``condition()``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(100)


@pytest.mark.parametrize("mode", MODES)
def test_runs_are_listed_looked_at_and_compared(mode, open_tab, shots):
    page = open_tab(mode)
    page.on("dialog", lambda dialog: pytest.fail(f"a name was run as a script: {dialog.message}"))
    order = [name for name in listed(page) if name in NAMES]
    assert order == ["rollouts-0001", f"{EVIL}-0001", "plain-0001"]  # newest first
    summary = item(page, "plain-0001").locator(".soft").inner_text()
    assert re.fullmatch(r"30 / 30 · loss [\d.]+ · [\d.]+ MB · (now|\d+ min\. ago)", summary)
    wait(page, lambda: page.evaluate(f"document.querySelector('{TAB} img').naturalWidth") == 384)
    item(page, "rollouts-0001").click()
    page.wait_for_selector(f"{TAB} path.adr")
    details = page.locator(f"{TAB} .details").inner_text()
    for text in ("50 %, up to 3 steps", "unipc 2, 1/50", "lora, rank 16, alpha 16", "0, 40"):
        assert text in details
    page.screenshot(path=shots / f"runs-{mode}-one.png")

    item(page, "plain-0001").click(modifiers=["Control"])
    page.wait_for_selector(f"{TAB} svg .run1")
    legend = page.locator(f"{TAB} .details .name").all_inner_texts()
    assert [text.split()[0] for text in legend] == ["rollouts-0001", "plain-0001"]
    assert "Rollouts\t50 %, up to 3 steps\toff" in page.locator(f"{TAB} table").inner_text()
    strokes = page.evaluate(STROKES)
    assert len({colour for colour, _ in strokes}) == len({dash for _, dash in strokes}) == 2
    page.locator(f"{TAB} select").select_option("adr")
    page.wait_for_timeout(200)
    assert page.locator(f"{TAB} .details .name").all_inner_texts()[1] == "plain-0001 \N{EN DASH}"
    page.locator(f"{TAB} label").click()  # the log switch
    page.screenshot(path=shots / f"runs-{mode}-two.png")

    button(page, "End comparison").click()
    page.locator(f"{TAB} input[type=search]").fill("ALERT(2)")
    assert listed(page) == [f"{EVIL}-0001"]
    item(page, f"{EVIL}-0001").click()
    wait(page, lambda: page.locator(f"{TAB} h3").all_inner_texts() == [f"{EVIL}-0001"])
    assert page.locator("img[src=x]").count() == 0
    page.evaluate(PALETTE, "light")
    page.wait_for_timeout(500)
    page.screenshot(path=shots / f"runs-{mode}-light.png")
    page.evaluate(PALETTE, "dark")


@pytest.mark.parametrize("mode", MODES)
def test_a_run_is_resumed_in_the_open_graph(mode, open_tab, comfyui, root, shots):
    page = open_tab(mode)
    graph = PromptBuilder(comfyui.object_info())
    add_training(graph, "again", steps=2)
    comfyui.queue(graph.prompt)
    name = max((path.name for path in root.glob("again-*")), key=str)
    page.evaluate("prompt => app.loadApiJson(prompt, 'again')", graph.prompt)
    page.wait_for_timeout(1000)
    before = page.evaluate(NODES)
    page.locator(f"{TAB} button[aria-label=Refresh]").click()
    item(page, name).click()
    button(page, "Resume").click()
    page.wait_for_timeout(800)
    page.screenshot(path=shots / f"runs-{mode}-resumed.png")
    toast = page.locator(".p-toast-message, [data-testid=toast]").filter(has_text="goes on from step 2")
    assert "The old training node is muted" in toast.first.inner_text()
    resumed, stage, *saved = page.evaluate(ADDED)
    assert (resumed["type"], stage["type"]) == ("RolloutResumeTraining", "RolloutTrainSteps")
    assert page.evaluate(MUTED) == ["RolloutTrainLoRA"]
    assert page.evaluate(SAVED_FROM) == "RolloutTrainSteps"
    assert resumed["values"] == [f"rollout_trainer/runs/{name}", -1]
    assert resumed["inputs"][:2] == ["RolloutLoadDiffusers", "RolloutEncodeDataset"]
    assert stage["inputs"][0] == "RolloutResumeTraining"
    assert resumed["visible"]
    assert stage["visible"]
    assert all(node["visible"] for node in saved)

    page.evaluate("app.extensionManager.workflow.activeWorkflow.changeTracker.undo()")
    wait(page, lambda: page.evaluate(NODES) == before)
    button(page, "Resume").click()
    page.evaluate(SET_STEPS, 3)
    page.evaluate("app.queuePrompt(0, 1)")
    wait(page, (root / name / "state-00000005.safetensors").is_file, 90)
    wait(page, lambda: not comfyui.get_json("/queue")["queue_running"], 60)
    assert (
        max((path.name for path in root.glob("again-*")), key=str) == name
    )  # nothing trained from the start
    wait(page, lambda: "5 / 2" in item(page, name).inner_text())
    wait(page, lambda: page.locator(f"{TAB} .details table").inner_text().endswith("0, 2, 5"))


def test_the_lora_of_a_saved_state_is_saved_from_the_sidebar(open_tab, comfyui, shots):
    page = open_tab("classic")
    item(page, "plain-0001").click()
    page.locator(f"{TAB} .row select").select_option("0")
    button(page, "Save LoRA").click()
    path = comfyui.base / "output" / "loras" / "plain-0001-step-0.safetensors"
    wait(page, path.is_file)
    toast = page.locator(".p-toast-message, [data-testid=toast]").filter(has_text=path.name)
    toast.first.wait_for()
    page.screenshot(path=shots / "runs-saved.png")
    offered = "() => LiteGraph.createNode('LoraLoaderModelOnly').widgets[0].options.values"
    wait(page, lambda: any(path.name in value for value in page.evaluate(offered)))


def test_an_empty_graph_gets_the_nodes_too(open_tab):
    page = open_tab("classic")
    page.evaluate("app.graph.clear()")
    item(page, "plain-0001").click()
    page.locator(f"{TAB} .row select").select_option("0")
    button(page, "Resume").click()
    page.wait_for_timeout(500)
    resumed, stage, saved = page.evaluate(ADDED)
    assert resumed["values"] == ["rollout_trainer/runs/plain-0001", 0]
    assert resumed["inputs"][:2] == ["RolloutLoadDiffusers", "RolloutEncodeDataset"]
    assert (stage["values"][1], saved["values"]) == (
        30,
        ["plain-0001"],
    )  # until_step: what the run is planned for
    assert resumed["visible"]


@pytest.mark.parametrize("mode", MODES)
def test_the_path_is_copied_and_a_run_deleted_after_a_question(mode, open_tab, comfyui, root, shots):
    graph = PromptBuilder(comfyui.object_info())
    add_training(graph, f"doomed-{mode}", steps=1)
    comfyui.queue(graph.prompt)
    name = f"doomed-{mode}-0001"
    page = open_tab(mode)
    item(page, name).click()
    button(page, "Copy path").click()
    wait(page, lambda: page.evaluate("navigator.clipboard.readText()") == str(root / name))
    page.get_by_text("Path copied", exact=True).first.wait_for()

    button(page, "Delete").click()
    dialog = page.locator(DIALOG).last
    assert name in dialog.inner_text()
    page.screenshot(path=shots / f"runs-{mode}-delete.png")
    dialog.get_by_role("button", name="Cancel").click()
    page.wait_for_timeout(500)
    assert (root / name / "config.json").is_file()
    assert name in listed(page)

    button(page, "Delete").click()
    page.locator(DIALOG).last.get_by_role("button", name="Delete").click()
    wait(page, lambda: name not in listed(page))
    assert not (root / name).exists()
    assert page.locator(f"{TAB} .details").is_hidden()


def test_a_training_is_seen_in_the_list_and_stays_until_it_stops(open_tab, comfyui, root, shots):
    page = open_tab("classic")
    page.evaluate("app.queuePrompt(0, 1)")
    wait(page, lambda: any("training · " in text for text in page.locator(f"{TAB} li").all_inner_texts()), 90)
    row = page.locator(f"{TAB} li").filter(has_text="training · ")
    row.click()
    page.wait_for_selector(f"{TAB} path.base")

    def step():
        return int(re.search(r"training · (\d+) / 5000", row.inner_text())[1])

    first = step()
    wait(page, lambda: step() >= first + 5, 60)
    assert button(page, "Delete").is_disabled()
    assert button(page, "Resume").is_disabled()
    page.screenshot(path=shots / "runs-training.png")
    comfyui.interrupt()
    wait(page, lambda: row.count() == 0, 30)
    wait(page, lambda: button(page, "Resume").is_enabled())
    assert button(page, "Delete").is_enabled()


def test_everything_is_reached_by_keyboard(open_tab, shots):
    page = open_tab("classic")
    page.locator(f"{TAB} input[type=search]").focus()
    nodes = page.evaluate(NODES)
    page.keyboard.type("0001 rq")  # letters that are shortcuts elsewhere
    page.keyboard.press("Control+a")
    page.keyboard.press("Delete")
    page.keyboard.press("Tab")
    names = listed(page)
    assert page.evaluate(FOCUSED) == names[0]
    page.keyboard.press("ArrowDown")
    assert page.evaluate(FOCUSED) == names[1]
    page.keyboard.press("End")
    page.keyboard.press("ArrowDown")
    assert page.evaluate(FOCUSED) == names[-1]
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    page.wait_for_selector(f"{TAB} h3")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Shift+Space")
    page.wait_for_selector(f"{TAB} svg .run1")
    page.screenshot(path=shots / "runs-keyboard.png")
    page.keyboard.press("Enter")
    page.wait_for_selector(f"{TAB} h3")
    page.keyboard.press("Delete")
    page.wait_for_selector(DIALOG)
    page.keyboard.press("Escape")
    page.wait_for_timeout(500)
    assert listed(page) == names
    item(page, names[1]).focus()
    reached = []
    for _ in range(8):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.innerText ?? ''"))
    assert {"Resume", "Compare", "Copy path", "Delete"} <= {text.strip() for text in reached}
    assert page.evaluate(NODES) == nodes


@pytest.mark.parametrize("mode", MODES)
def test_the_tab_is_japanese(mode, open_tab, shots):
    page = open_tab(mode, "ja")
    assert page.locator(f"{TAB} h2").inner_text() == "学習ラン"
    item(page, "rollouts-0001").click()
    page.wait_for_selector(f"{TAB} path.base")
    assert {"再開", "比較", "パスをコピー", "削除"} <= set(page.locator(f"{TAB} button").all_inner_texts())
    assert "50 %、最大 3 ステップ" in page.locator(f"{TAB} table").inner_text()
    page.screenshot(path=shots / f"runs-{mode}-ja.png")


def test_an_open_tab_rests_and_a_closed_one_leaves_nothing(open_tab):
    page = open_tab("classic")
    item(page, "plain-0001").click()
    page.wait_for_selector(f"{TAB} path.base")
    page.wait_for_timeout(500)
    asked = []
    page.on(
        "request", lambda request: asked.append(request.url) if "rollout_trainer" in request.url else None
    )
    page.evaluate(WATCH)
    page.wait_for_timeout(3000)
    assert page.evaluate("window.changes") == 0
    assert asked == []
    page.locator(TAB_BUTTON).click()
    page.wait_for_timeout(500)
    assert page.locator(TAB).count() == 0
    page.evaluate("app.api.dispatchCustomEvent('execution_success', {prompt_id: 'none'})")
    page.wait_for_timeout(1500)
    assert asked == []
    for _ in range(4):
        page.locator(TAB_BUTTON).click()
        page.wait_for_timeout(300)
    assert page.locator(TAB).count() == 0
    page.locator(TAB_BUTTON).click()
    page.wait_for_selector(f"{TAB} li")
    assert page.locator(TAB).count() == 1
