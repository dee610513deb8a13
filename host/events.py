"""What ComfyUI tells the pack's own front end: facts about a running training, live and after a reload.

Live, they are the event `rollout_trainer.progress`. The newest facts of each node are also kept in memory
for `GET /rollout_trainer/facts`: a page that is reloaded asks for them, and a training that was stopped has no
entry of its own in the host's history. The front end is not asked for anything: no path, no code.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from .interface import Facts

if TYPE_CHECKING:
    from aiohttp import web

EVENT = "rollout_trainer.progress"
ROUTE = "/rollout_trainer/facts"
INTERVAL = 0.25  # seconds: at most four events a second
REMEMBERED = 100  # nodes

_newest: OrderedDict[tuple[str, str], dict[str, Any]] = OrderedDict()
"""By workflow and node, in the order of the last change."""


class Panel:
    """The panel of one node during one execution of a graph."""

    def __init__(self, prompt_id: str, node_id: str) -> None:
        self._server = prompt_server()
        self._place = {
            "node": node_id,
            "prompt_id": prompt_id,
            "workflow": workflow_of(self._server, prompt_id),
        }
        self._due = 0.0

    def show(self, facts: Facts, done: bool, stopped: bool) -> None:
        """Send the facts if it is time to, always if they are the last ones."""
        now = time.monotonic()
        if self._server is None or (now < self._due and not done and not stopped):
            return
        self._due = now + INTERVAL
        state = "stopped" if stopped else "done" if done else "running"
        data = {**facts(), **self._place, "state": state}
        remember(data)
        self._server.send_sync(EVENT, data, self._server.client_id)


def prompt_server() -> Any:
    """Return the running server; None when ComfyUI's modules are used without it."""
    from server import PromptServer

    return getattr(PromptServer, "instance", None)


def workflow_of(server: Any, prompt_id: str) -> str:
    """Return the id of the workflow whose graph is executed, "" if whoever queued it did not say."""
    running = [] if server is None else server.prompt_queue.get_current_queue_volatile()[0]
    for _, own_id, _, extra, *_ in running:
        if own_id == prompt_id:
            workflow = (extra.get("extra_pnginfo") or {}).get("workflow") or {}
            return str(workflow.get("id", ""))
    return ""


def remember(data: dict[str, Any]) -> None:
    """Keep the newest facts of a node, and forget those of the node that was silent longest."""
    key = (data["workflow"], data["node"])
    _newest[key] = data
    _newest.move_to_end(key)
    while len(_newest) > REMEMBERED:
        _newest.popitem(last=False)


def serve() -> None:
    """Open the route; ComfyUI adds it to its server once all packs are loaded."""
    server = prompt_server()
    if server is None:
        return

    server.routes.get(ROUTE)(newest)


async def newest(request: web.Request) -> web.Response:
    """Answer with the newest facts of the nodes of the workflow that is asked for, by node."""
    from aiohttp import web

    workflow = request.query.get("workflow", "")
    return web.json_response({node: data for (own, node), data in _newest.items() if own == workflow})


def trained_now() -> set[str]:
    """Names of the runs that graphs being executed have trained so far; their later nodes may go on with them."""
    server = prompt_server()
    running = [] if server is None else server.prompt_queue.get_current_queue_volatile()[0]
    prompts = {prompt_id for _, prompt_id, *_ in running}
    return {data["run"] for data in _newest.values() if data["prompt_id"] in prompts}
