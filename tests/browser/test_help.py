"""The help of a node, as the front end shows it: our page with its pictures, in the user's language."""

from __future__ import annotations

import comfyui_process
import pytest
from comfyui_process import HOW_TO, find_installation, other_front_end, running
from test_front import MODES, PREPARE, browser, quickstart, visit

__all__ = ["browser"]  # the fixture

FOLDER = "rollout-trainer"
"""Without dots: up to them the front end takes a folder's name for the pack's, and finds no page of another."""
SELECT = """() => {
    const node = app.graph.nodes.find((node) => node.comfyClass === "RolloutPreview");
    app.canvas.ds.scale = 1;
    app.canvas.ds.offset = [500 - node.pos[0], 350 - node.pos[1]];
    app.canvas.selectNode(node);
    app.canvas.setDirty(true, true);
}"""
PICTURES = """() => [...document.querySelectorAll("img")]
    .filter((img) => img.src.includes("/docs/")).map((img) => [img.src.split("/docs/")[1], img.naturalWidth > 0])"""


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    installation = find_installation()
    if installation is None:
        pytest.skip(f"no ComfyUI found: {HOW_TO}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comfyui_process, "PACK_FOLDER", FOLDER)
        with running(installation, tmp_path_factory.mktemp("help"), other_front_end()) as host:
            yield host


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("locale", "heading"), [("en", "Sensible values"), ("ja", "目安")])
def test_the_help_of_a_node_is_our_page_with_its_pictures(mode, locale, heading, browser, host):
    page = browser.new_context(viewport={"width": 1500, "height": 950}).new_page()
    visit(page, host.url)
    page.evaluate(PREPARE, [mode == "nodes2", locale])
    visit(page, host.url)
    workflow = quickstart() | {"extra": {}}  # its own view would be taken while the node is looked at
    page.evaluate("workflow => app.loadGraphData(workflow)", workflow)
    page.wait_for_timeout(1000)
    page.evaluate(SELECT)
    button = page.locator(
        '[data-testid="info-button"], .selection-toolbox button:has(.pi-question-circle)'
    ).first
    button.click(timeout=10_000)
    page.get_by_text(heading).first.wait_for(timeout=15_000)
    page.wait_for_timeout(1000)
    shown = page.evaluate(PICTURES)
    page.context.close()
    assert shown == [["RolloutPreview/node.png", True], ["RolloutPreview/result.png", True]]
