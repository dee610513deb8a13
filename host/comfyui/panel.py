"""What ComfyUI tells the pack's own front end: facts about a running training, and what it may ask of it.

Live, facts are the event `rollout_trainer.progress`. The newest ones of each node are also kept in memory, and those
of each run by itself (`PanelKeeper`): a page that is reloaded asks for them, and a training that was stopped has
no entry of its own in the host's history. `panel_routes` is where the page asks.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from typing import Any

from ..interface import Ask, Ending, MakeFacts, PanelKeeper

logger = logging.getLogger(__name__)

EVENT = "rollout_trainer.progress"
INTERVAL = 0.25  # seconds: at most four events a second
KEEP_INTERVAL = 30.0  # seconds after which the run gets the newest facts to keep
REMEMBERED = 100  # nodes

_newest: OrderedDict[tuple[str, str], dict[str, Any]] = OrderedDict()
"""By workflow and node, in the order of the last change."""
_training: Panel | None = None
"""The panel of the training that began last; the host executes one at a time."""


class Panel:
    """The panel of one training node during one execution of a graph.

    Args:
        run: keeps the newest facts.
    """

    def __init__(self, prompt_id: str, node_id: str, run: PanelKeeper) -> None:
        global _training
        self._server = prompt_server()
        self._workflow = workflow_of(self._server, prompt_id)
        self.place = {"node": node_id, "prompt_id": prompt_id, "workflow": self._workflow}
        self._run = run
        self._due = self._keep_due = 0.0
        self._asks: set[Ask] = set()
        _training = self

    @property
    def watched(self) -> bool:
        """Whether a page queued the graph, so that the panel is there and shows text and pictures itself."""
        return bool(self._workflow)

    def show(self, facts: MakeFacts) -> None:
        """Send the facts if it is time to."""
        if time.monotonic() >= self._due:
            self._tell({**facts(), **self.place, "state": "running"})

    def end(self, facts: MakeFacts, state: Ending, error: str = "") -> None:
        """Send the last facts; nothing can be asked any more."""
        global _training
        _training = None
        self._keep_due = 0.0
        self._tell({**facts(), **self.place, "state": state, **({"error": error} if error else {})})

    def ask(self, what: Ask) -> None:
        """Keep what the user asks for until the training looks; the server's thread calls this."""
        self._asks.add(what)

    def asked(self) -> frozenset[Ask]:
        """What was asked for since the last call."""
        asks = frozenset(self._asks)
        self._asks -= asks
        return asks

    def _tell(self, data: dict[str, Any]) -> None:
        now = time.monotonic()
        self._due = now + INTERVAL
        if self._server is None:
            return
        if now >= self._keep_due:
            self._keep_due = now + KEEP_INTERVAL
            self._keep(data)
        remember(data)
        # Every tab that shows this workflow may hear it. In a graph without one, which a script queued, the same id
        # may be another node than in a tab: that is told to whoever queued it alone.
        if self._workflow:
            self._server.send_sync(EVENT, data, None)
        elif self._server.client_id:
            self._server.send_sync(EVENT, data, self._server.client_id)

    def _keep(self, data: dict[str, Any]) -> None:
        try:
            self._run.keep_panel(data)
        except RuntimeError as err:  # a full disk is no reason to stop a training
            logger.warning("what the panel shows is not kept: %s", err)


def prompt_server() -> Any:
    """The running server; None when ComfyUI's modules are used without it."""
    from server import PromptServer

    return getattr(PromptServer, "instance", None)


def executing(server: Any) -> dict[str, dict[str, Any]]:
    """What the host executes now: the extra data of each graph, by its id."""
    running = [] if server is None else server.prompt_queue.get_current_queue_volatile()[0]
    return {own_id: extra for _, own_id, _, extra, *_ in running}


def workflow_of(server: Any, prompt_id: str) -> str:
    """The id of the workflow whose graph is executed, "" if whoever queued it did not say."""
    extra = executing(server).get(prompt_id, {})
    workflow = (extra.get("extra_pnginfo") or {}).get("workflow") or {}
    return str(workflow.get("id", ""))


def remember(data: dict[str, Any]) -> None:
    """Keep the newest facts of a node, and forget those of the node that was silent longest."""
    key = (data["workflow"], data["node"])
    _newest[key] = data
    _newest.move_to_end(key)
    while len(_newest) > REMEMBERED:
        _newest.popitem(last=False)


def stopped(data: dict[str, Any]) -> dict[str, Any]:
    """Facts of a training that does not run any more, whatever it said last."""
    return data if data["state"] != "running" else {**data, "state": "stopped", "seconds_left": None}


def remembered(workflow: str) -> dict[str, dict[str, Any]]:
    """The newest facts of the nodes of a workflow, by node.

    A training that an error ended had no last word: it runs only while its graph is executed.
    """
    running = executing(prompt_server())
    return {
        node: data if data["prompt_id"] in running else stopped(data)
        for (own, node), data in tuple(_newest.items())  # the training's thread adds to it
        if own == workflow
    }


def ask(node: str, prompt_id: str, what: Ask) -> None:
    """Ask something of a training that is running.

    Raises:
        LookupError: that node of that graph does not train now.
    """
    panel = _training
    if panel is None or (panel.place["node"], panel.place["prompt_id"]) != (node, prompt_id):
        raise LookupError("this node does not train now")
    if prompt_id not in executing(prompt_server()):  # an error ended it
        raise LookupError("this workflow does not run now")
    panel.ask(what)


def trained_now() -> set[str]:
    """Names of the runs that graphs being executed have trained so far; their later nodes may go on with them."""
    running = executing(prompt_server())
    return {data["run"] for data in tuple(_newest.values()) if data["prompt_id"] in running}
