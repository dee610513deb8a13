"""The panel as a place to watch: films and their sliders, asking, two tabs, subgraphs, queues, a restart, its cost."""

from __future__ import annotations

import json
import re
import time
import uuid

import pytest
from comfyui_process import PACK_FOLDER, find_installation, running
from test_front import (
    MODES,
    PANEL,
    PREPARE,
    TRAIN,
    browser,
    data,
    look_at,
    open_page,
    points,
    quickstart,
    shots,
    visit,
    wait_for_state,
    wait_for_step,
)

__all__ = ["browser", "open_page", "shots"]  # the fixtures

PREVIEW_EVERY = 12  # number of the widget
SECONDS = 3.0  # of a measurement
SCALE = 0.75  # the whole panel is on the screen
OWN = f"/{PACK_FOLDER}/"
LOADED = f"""() => {{
    const picture = document.querySelector("{PANEL}").shadowRoot.querySelector(".film img");
    return picture.complete && picture.naturalWidth;
}}"""


@pytest.fixture(autouse=True)
def nothing_is_left_running(request):
    """A training that a failed test leaves would keep the others waiting."""
    yield
    if "comfyui" in request.fixturenames:
        host = request.getfixturevalue("comfyui")
        host.post_json("/queue", {"clear": True})
        host.interrupt()
        deadline = time.monotonic() + 60
        while host.get_json("/queue")["queue_running"] and time.monotonic() < deadline:
            time.sleep(0.2)


def filmed(every=5, steps=5000, name="quickstart"):
    """The shipped workflow with small steps, and an id of its own: old front ends keep the one of the file."""
    workflow = quickstart() | {"id": str(uuid.uuid4())}
    train = next(node for node in workflow["nodes"] if node["id"] == TRAIN)
    train["widgets_values"][PREVIEW_EVERY] = every
    train["widgets_values"][0] = steps
    train["widgets_values"][10] = name
    return workflow


def wait_for_films(page, count, timeout=90.0):
    deadline = time.monotonic() + timeout
    while int(data(page, "films") or 0) < count:
        assert time.monotonic() < deadline, f"the panel shows {data(page, 'films')} films"
        page.wait_for_timeout(200)


def slider(page, name):
    return page.locator(PANEL).get_by_role("slider", name=name)


def press(page, name):
    page.locator(PANEL).get_by_role("button", name=name).click()


def picture(page):
    """Address of the frame that is shown, once it is there."""
    page.wait_for_function(LOADED)
    return page.locator(f"{PANEL} .film img").get_attribute("src")


def stop(page):
    press(page, "stop and save")
    wait_for_state(page, "stopped")


def runs_of(host):
    return host.base / "output" / "rollout_trainer" / "runs"


@pytest.fixture
def small_memory(comfyui):
    """``small_memory(share)``: the pack believes in a device with room for so many times a model's weights."""

    def believe(share):
        comfyui.queue({"1": {"class_type": "TestSmallMemory", "inputs": {"share": share}}})

    yield believe
    believe(0.0)


MEMORY = 14  # number of the widget


@pytest.mark.parametrize("mode", MODES)
def test_what_the_memory_plan_says_is_read_while_it_trains(mode, open_page, small_memory, shots):
    small_memory(1.4)
    workflow = filmed(0, name=f"plan-{mode}")
    train = next(node for node in workflow["nodes"] if node["id"] == TRAIN)
    assert train["widgets_values"][MEMORY] == "manual"
    train["widgets_values"][1] = 8
    train["widgets_values"][MEMORY] = "auto"
    page = open_page(mode, workflow=workflow)
    look_at(page, TRAIN, SCALE)
    page.evaluate("app.queuePrompt(0, 1)")
    wait_for_step(page, 3, 90)
    told = page.locator(PANEL).locator(".told")
    assert re.match(
        r"needs about [\d.]+ GB of [\d.]+; trained with .+: [\d.]+ GB, steps [\d.]+ x as long;",
        told.inner_text(),
    )
    assert told.get_attribute("title") == told.inner_text()
    page.screenshot(path=shots / f"plan-{mode}.png")
    stop(page)


@pytest.mark.parametrize("mode", MODES)
def test_a_film_is_moved_through_by_mouse_and_keyboard_and_is_there_after_a_reload(
    mode, open_page, comfyui, shots
):
    page = open_page(mode, workflow=filmed(name=f"film-{mode}"))
    look_at(page, TRAIN, SCALE)
    assert page.locator(f"{PANEL} .film").is_hidden()
    before = page.locator(PANEL).bounding_box()["height"]
    page.evaluate("app.queuePrompt(0, 1)")
    wait_for_films(page, 3)
    newest = picture(page)
    assert re.search(r"/runs/film-[a-z0-9]+-0001/film/\d+/3\?version=\d+$", newest)
    assert page.locator(PANEL).bounding_box()["height"] > before
    page.screenshot(path=shots / f"film-{mode}.png")

    place = page.evaluate("id => [...app.graph.getNodeById(id).pos]", TRAIN)
    page.evaluate("id => app.canvas.selectNode(app.graph.getNodeById(id))", TRAIN)
    slider(page, "rollout step").focus()
    page.keyboard.press("Home")
    assert re.search(r"/film/\d+/0\?", picture(page))
    assert "drift" in page.locator(f"{PANEL} .film").inner_text()
    assert "0.00 %" in page.locator(f"{PANEL} .film").inner_text()  # at the source there is none yet
    page.keyboard.press("ArrowRight")
    assert re.search(r"/film/\d+/1\?", picture(page))
    assert (
        page.evaluate("id => [...app.graph.getNodeById(id).pos]", TRAIN) == place
    )  # arrows are the slider's alone
    slider(page, "training step").focus()
    page.keyboard.press("Home")
    assert "/film/0/1?" in picture(page)
    shown = int(data(page, "films"))
    wait_for_films(page, shown + 1)
    assert "/film/0/1?" in picture(page)  # an older one is looked at: it stays
    page.keyboard.press("End")
    followed = picture(page)
    assert "/film/0/" not in followed
    wait_for_films(page, shown + 2)
    page.wait_for_timeout(300)
    assert picture(page) != followed
    stop(page)

    step, films, curve = data(page, "step"), data(page, "films"), points(page)
    visit(page, comfyui.url)
    page.wait_for_selector(PANEL, state="attached", timeout=20_000)
    wait_for_films(page, int(films))
    look_at(page, TRAIN, SCALE)
    assert (data(page, "step"), data(page, "films"), points(page)) == (step, films, curve)
    picture(page)
    page.screenshot(path=shots / f"film-reloaded-{mode}.png")
    page.evaluate("id => app.graph.remove(app.graph.getNodeById(id))", TRAIN)
    page.wait_for_timeout(500)
    assert page.locator(PANEL).count() == 0
    assert page.locator("img[src*='/film/']").count() == 0


@pytest.mark.parametrize("mode", MODES)
def test_a_state_and_a_film_come_when_they_are_asked_for(mode, open_page, comfyui):
    name = f"asked-{mode}"
    page = open_page(mode, workflow=filmed(every=0, name=name))
    look_at(page, TRAIN, SCALE)
    page.evaluate("app.queuePrompt(0, 1)")
    wait_for_step(page, 3)
    assert page.locator(f"{PANEL} .film").is_hidden()
    press(page, "preview now")
    wait_for_films(page, 1)
    picture(page)
    press(page, "save now")
    told = page.locator(f"{PANEL} .numbers", has_text="saved step")
    told.wait_for()
    saved = int(re.search(r"\d+", told.inner_text())[0])
    assert told.get_attribute("title") == f"{name}-0001/state-{saved:08d}.safetensors"
    folder = runs_of(comfyui) / f"{name}-0001"
    state = json.loads((folder / f"state-{saved:08d}.json").read_text())
    assert state["pinned"]
    assert saved > 0
    wait_for_step(page, saved + 2)  # and it goes on
    stop(page)
    last = int(data(page, "step"))
    assert (folder / f"state-{last:08d}.safetensors").is_file()
    assert page.locator(f"{PANEL} button:enabled").count() == 0


def wait_for_end(page, said, timeout=60.0):
    line = page.locator(f"{PANEL} .ended")
    line.filter(has_text=said).wait_for(timeout=timeout * 1000)
    return line.inner_text()


@pytest.mark.parametrize("mode", MODES)
def test_a_training_that_is_finished_early_gives_its_lora_to_the_rest_of_the_graph(
    mode, open_page, comfyui, shots
):
    before = set(comfyui.get_json("/history"))
    loras = set((comfyui.base / "output").rglob("*.safetensors"))
    page = open_page(mode, workflow=filmed(every=0, name=f"finished-{mode}"))
    look_at(page, TRAIN, SCALE)
    page.evaluate("app.queuePrompt(0, 1)")
    wait_for_step(page, 3)
    assert page.locator(f"{PANEL} .ended").is_hidden()
    press(page, "finish now")
    wait_for_state(page, "done")
    step = data(page, "step")
    assert wait_for_end(page, "finished early") == f"finished early at step {step}"
    assert page.locator(f"{PANEL} button:enabled").count() == 0
    deadline = time.monotonic() + 240
    while not (ended := set(comfyui.get_json("/history")) - before):
        assert time.monotonic() < deadline
        page.wait_for_timeout(300)
    entry = comfyui.get_json("/history")[ended.pop()]
    assert entry["status"]["status_str"] == "success", entry["status"]
    new = set((comfyui.base / "output").rglob("*.safetensors")) - loras
    assert [path.parent.name for path in new if "runs" not in path.parts] == ["loras"]
    page.screenshot(path=shots / f"finished-{mode}.png")


def test_an_error_is_told_in_its_own_words_by_a_toast_and_the_panel(open_page, comfyui, shots):
    workflow = filmed(every=0, name="broken")
    settings = next(node for node in workflow["nodes"] if node["id"] == TRAIN)
    settings["widgets_values"][10] = "a/b"  # no name of a folder
    page = open_page("classic", workflow=workflow)
    look_at(page, TRAIN, SCALE)
    page.evaluate("app.queuePrompt(0, 1)")
    said = wait_for_end(page, "failed:", 90)
    assert "run_name must" in said, said
    toast = page.locator(".p-toast-message, [data-testid=toast]").filter(has_text="must")
    toast.first.wait_for(timeout=10_000)
    page.screenshot(path=shots / "failed.png")
    assert said.removeprefix("failed: ") in toast.first.inner_text()


def test_a_second_tab_sees_the_same_and_a_tab_with_another_workflow_nothing(open_page, comfyui):
    first = open_page("classic", workflow=filmed(name="tabs"))
    workflow = first.evaluate("app.graph.serialize()")
    second = open_page("classic", workflow=workflow)
    look_at(second, TRAIN, SCALE)
    other = open_page("classic", workflow=filmed())
    assert second.evaluate("(app.rootGraph ?? app.graph).id") == workflow["id"]
    first.evaluate("app.queuePrompt(0, 1)")
    wait_for_films(second, 2)
    assert data(second, "run") == data(first, "run") == "tabs-0001"
    press(second, "stop and save")
    wait_for_state(second, "stopped")
    wait_for_state(first, "stopped")
    assert data(second, "step") == data(first, "step")
    assert data(other, "step") is None


def test_of_a_queue_the_run_that_runs_now_is_shown(open_page, comfyui):
    page = open_page("classic", workflow=filmed(steps=12, name="queue"))
    set_seed = (
        "([id, seed]) => { app.graph.getNodeById(id).widgets.find((w) => w.name === 'seed').value = seed }"
    )
    for seed in (1, 2):
        page.evaluate(set_seed, [TRAIN, seed])
        page.evaluate("app.queuePrompt(0, 1)")
    seen = []
    deadline = time.monotonic() + 120
    while (data(page, "run"), data(page, "state")) != ("queue-0002", "done"):
        assert time.monotonic() < deadline, seen
        now = data(page, "run"), data(page, "state")
        seen += [now] if now not in seen[-1:] else []
        page.wait_for_timeout(50)
    order = [run for run, _ in seen if run]
    assert order == sorted(order)
    assert set(order) == {"queue-0001", "queue-0002"}
    wait_for_films(page, 3)
    page.wait_for_timeout(300)
    assert "/queue-0002/" in picture(page)


IN_SUBGRAPH = """id => {
    const { subgraph, node } = app.graph.convertToSubgraph(new Set([app.graph.getNodeById(id)]));
    return [node.id, subgraph.nodes.map((n) => n.id)];
}"""
OPEN_SUBGRAPH = "id => app.canvas.openSubgraph(app.graph.getNodeById(id).subgraph, app.graph.getNodeById(id))"

LOOK_INSIDE = """id => {
    const node = app.canvas.graph.getNodeById(id);
    app.canvas.ds.scale = 0.75;
    app.canvas.ds.offset = [-node.pos[0] + 350, -node.pos[1] + 150];
}"""


def test_a_training_in_a_subgraph_is_watched_asked_and_found_again(open_page, comfyui, shots):
    page = open_page("classic", workflow=filmed(name="subgraph"))
    node, inner = page.evaluate(IN_SUBGRAPH, TRAIN)
    assert len(inner) == 1
    page.evaluate(OPEN_SUBGRAPH, node)
    page.wait_for_timeout(500)
    page.evaluate("app.queuePrompt(0, 1)")
    page.evaluate(LOOK_INSIDE, inner[0])
    wait_for_films(page, 2)
    press(page, "save now")
    page.locator(f"{PANEL} .numbers", has_text="saved step").wait_for()
    page.screenshot(path=shots / "subgraph.png")
    stop(page)
    told = json.loads((runs_of(comfyui) / "subgraph-0001" / "panel.json").read_text())
    assert told["node"] == f"{node}:{inner[0]}"
    step = data(page, "step")
    visit(page, comfyui.url)
    page.wait_for_timeout(1500)
    steps = page.evaluate(
        f"""id => app.graph.getNodeById(id).subgraph.nodes.flatMap((n) => (n.widgets ?? [])
            .filter((w) => w.element?.matches("{PANEL}")).map((w) => w.element.dataset.step))""",
        node,
    )
    assert steps == [step]


def test_the_page_shows_the_run_again_after_the_server_was_restarted(browser, tmp_path, shots):
    installation = find_installation()
    if installation is None:
        pytest.skip("no ComfyUI found")
    context = browser.new_context(viewport={"width": 1500, "height": 1100})
    page = context.new_page()
    with running(installation, tmp_path) as host:
        visit(page, host.url)
        page.evaluate(PREPARE, [False, "en"])
        visit(page, host.url)
        page.evaluate("workflow => app.loadGraphData(workflow)", filmed())
        page.evaluate("app.queuePrompt(0, 1)")
        wait_for_films(page, 2)
        workflow = page.evaluate("app.graph.serialize()")
        host.process.kill()  # no last word: the file says that it runs
        host.process.wait()
    told = json.loads((runs_of(host) / "quickstart-0001" / "panel.json").read_text())
    assert told["state"] == "running"
    context.close()
    context = browser.new_context(viewport={"width": 1500, "height": 1100})
    page = context.new_page()
    (tmp_path / "custom_nodes" / PACK_FOLDER).unlink()
    with running(installation, tmp_path) as host:
        visit(page, host.url)
        page.evaluate("workflow => app.loadGraphData(workflow)", workflow)
        wait_for_films(page, 1)
        look_at(page, TRAIN, SCALE)
        assert data(page, "state") == "stopped"
        assert int(data(page, "step")) == told["step"]
        assert picture(page)
        page.screenshot(path=shots / "restarted.png")
    context.close()


LUMINANCE = """colour => {
    const canvas = document.createElement("canvas").getContext("2d");
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((v) => v / 255)
        .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}"""
COLOURS = f"""() => {{
    const root = document.querySelector("{PANEL}").shadowRoot;
    const style = (selector) => getComputedStyle(root.querySelector(selector));
    return {{
        paper: style(".panel").backgroundColor,
        lines: ["base", "fc", "adr"].map((name) => style(`path.${{name}}:not(.raw)`).stroke),
        texts: [style(".panel").color, style(".numbers").color, style("output").color],
    }};
}}"""


@pytest.mark.parametrize("palette", ["dark", "light"])
def test_lines_and_texts_are_readable_in_every_theme(palette, open_page, shots):
    page = open_page("classic", workflow=filmed(name="colours"))
    page.evaluate("name => app.extensionManager.setting.set('Comfy.ColorPalette', name)", palette)
    look_at(page, TRAIN, SCALE)
    page.evaluate("app.queuePrompt(0, 1)")
    wait_for_films(page, 2)
    wait_for_step(page, 12)
    picture(page)
    page.locator(PANEL).screenshot(path=shots / f"panel-{palette}.png")
    stop(page)
    colours = page.evaluate(COLOURS)
    paper = page.evaluate(LUMINANCE, colours["paper"])

    def contrast(colour):
        other = page.evaluate(LUMINANCE, colour)
        return (max(paper, other) + 0.05) / (min(paper, other) + 0.05)

    assert len(set(colours["lines"])) == 3
    assert min(map(contrast, colours["lines"])) >= 3, colours  # WCAG 1.4.11
    assert min(map(contrast, colours["texts"])) >= 4.5, colours


def own_share(page, seconds):
    """Share of the main thread's time that the pack's scripts take."""
    session = page.context.new_cdp_session(page)
    session.send("Profiler.enable")
    session.send("Profiler.start")
    page.wait_for_timeout(seconds * 1000)
    profile = session.send("Profiler.stop")["profile"]
    session.detach()
    ours = {node["id"] for node in profile["nodes"] if OWN in node["callFrame"]["url"]}
    spent = sum(
        delta for node, delta in zip(profile["samples"], profile["timeDeltas"], strict=True) if node in ours
    )
    return spent / (profile["endTime"] - profile["startTime"])


COUNT_UPDATES = f"""() => {{
    window.updates = 0;
    const panel = document.querySelector("{PANEL}");
    new MutationObserver(() => window.updates++).observe(panel, {{ attributeFilter: ["data-step"] }});
}}"""


@pytest.mark.parametrize("mode", MODES)
def test_a_panel_costs_nothing_when_idle_and_is_told_four_times_a_second(mode, open_page):
    page = open_page(mode, workflow=filmed(name="cost"))
    look_at(page, TRAIN, SCALE)
    idle = own_share(page, SECONDS)
    page.evaluate(COUNT_UPDATES)
    page.evaluate("app.queuePrompt(0, 1)")
    wait_for_films(page, 1)
    first = page.evaluate("updates")
    busy = own_share(page, SECONDS)
    updates = page.evaluate("updates") - first
    stop(page)
    page.wait_for_timeout(500)
    after = own_share(page, SECONDS)
    print(f"{mode}: idle {idle:.3%}, training {busy:.3%} with {updates} updates, after {after:.3%}")
    assert idle < 0.01
    assert after < 0.01
    assert updates <= 4 * SECONDS + 2
