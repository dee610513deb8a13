"""The run browser in a real browser on a real host: look, compare, resume, copy, delete; by hand and by keyboard.

Screenshots are left where `test_front` leaves its own.
"""

from __future__ import annotations

import time

import pytest
from prompt_builder import PromptBuilder
from test_front import MODES, browser, open_page, shots
from test_run_routes import EVIL, add_training

__all__ = ["browser", "open_page", "shots"]  # the fixtures

TAB = ".rollout-runs"
TAB_BUTTON = ".rollout-trainer-runs-tab-button"
NAMES = {"plain-0001", "rollouts-0001", f"{EVIL}-0001"}
LIGHT = "app.extensionManager.setting.set('Comfy.ColorPalette', 'light')"
DIALOG = "[role=dialog], [role=alertdialog]"
NODES = "() => app.graph.nodes.map((n) => [n.id, n.type])"


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
    return comfyui.base / "output" / "rollout_trainer" / "runs"


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
    assert set(listed(page)) >= NAMES
    page.screenshot(path=shots / f"runs-{mode}-list.png")
    item(page, "rollouts-0001").click()
    page.wait_for_selector(f"{TAB} path.base")
    page.screenshot(path=shots / f"runs-{mode}-one.png")
    item(page, "plain-0001").click(modifiers=["Control"])
    page.wait_for_selector(f"{TAB} path.run1")
    page.screenshot(path=shots / f"runs-{mode}-two.png")
    page.evaluate(LIGHT)
    page.wait_for_timeout(500)
    page.screenshot(path=shots / f"runs-{mode}-light-two.png")
    item(page, f"{EVIL}-0001").click()
    page.wait_for_timeout(500)
    page.screenshot(path=shots / f"runs-{mode}-light-one.png")
