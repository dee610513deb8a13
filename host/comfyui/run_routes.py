"""The routes of the run browser: what runs there are, one of them, its thumbnail, saving its LoRA, and deleting it.

Names come from whoever can reach the server. They go to `Runs` alone, which finds a run of that name in the runs
folder or nothing. ComfyUI refuses requests that other web sites make, except where it was started with
`--enable-cors-header`: then any page may send DELETE, but not with a header of its own, so what writes asks for one.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from ..interface import Runs
from .panel import prompt_server, trained_now
from .panel_routes import PanelRoutes

if TYPE_CHECKING:
    from aiohttp import web

ROUTE = "/rollout_trainer/runs"
HEADER = "X-Rollout-Trainer"
"""A request that carries it was made by the pack's own scripts."""


class RunRoutes:
    """The handlers; what touches the disk runs beside the event loop."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs

    def open(self, routes: web.RouteTableDef) -> None:
        """Add the handlers to the server's table."""
        routes.get(ROUTE)(self.listed)
        routes.get(ROUTE + "/{name}")(self.details)
        routes.get(ROUTE + "/{name}/thumbnail")(self.thumbnail)
        routes.post(ROUTE + "/{name}/lora/{step:[0-9]{1,12}}")(self.save_lora)
        routes.delete(ROUTE + "/{name}")(self.remove)
        # What is no address of ours would go on to ComfyUI's own files, which fail at names too long for a disk.
        routes.route("*", ROUTE + "/{rest:.*}")(self.nothing)

    async def nothing(self, request: web.Request) -> web.Response:
        """No such address."""
        return answer({"error": "no such address"}, 404)

    async def listed(self, request: web.Request) -> web.Response:
        """All runs."""
        listed = await asyncio.to_thread(self._runs.listed)
        busy = trained_now()
        for run in listed["runs"]:
            run["training"] |= run["name"] in busy
        return answer(listed)

    async def details(self, request: web.Request) -> web.Response:
        """One run with its settings and curve."""
        try:
            return answer(await asyncio.to_thread(self._runs.details, request.match_info["name"]))
        except LookupError:
            return answer({"error": "no such run"}, 404)

    async def thumbnail(self, request: web.Request) -> web.StreamResponse:
        """The picture of a run; its address names the film's step, so it may be kept."""
        from aiohttp import web

        try:
            path = await asyncio.to_thread(self._runs.thumbnail, request.match_info["name"])
        except LookupError:
            return answer({"error": "no such picture"}, 404)
        headers = {"Content-Type": "image/jpeg", "Cache-Control": "private, max-age=86400", **SAFE}
        return web.FileResponse(path, headers=headers)

    async def save_lora(self, request: web.Request) -> web.Response:
        """Write the LoRA of a saved state, for our own scripts only; the file's name."""
        if HEADER not in request.headers:
            return answer({"error": f"a request to save must carry the header {HEADER}"}, 403)
        name, step = request.match_info["name"], int(request.match_info["step"])
        try:
            return answer({"file": await asyncio.to_thread(self._runs.save_lora, name, step)})
        except LookupError:
            return answer({"error": "no such state"}, 404)
        except (RuntimeError, ValueError) as err:
            return answer({"error": str(err)}, 409)

    async def remove(self, request: web.Request) -> web.Response:
        """Delete a run, for our own scripts only and not while a graph works with it."""
        name = request.match_info["name"]
        if HEADER not in request.headers:
            return answer({"error": f"a request to delete must carry the header {HEADER}"}, 403)
        if name in trained_now():
            return answer({"error": f"{name} is used by a running workflow; stop it first"}, 409)
        try:
            await asyncio.to_thread(self._runs.remove, name)
        except LookupError:
            return answer({"error": "no such run"}, 404)
        except RuntimeError as err:
            return answer({"error": str(err)}, 409)
        return answer({})


SAFE = {"X-Content-Type-Options": "nosniff"}
"""Names in an answer are not markup, whatever a browser thinks they look like."""


def answer(value: dict[str, Any], status: int = 200) -> web.Response:
    """`value` as JSON that nobody keeps."""
    from aiohttp import web

    return web.json_response(value, status=status, headers={"Cache-Control": "no-store", **SAFE})


def serve(runs: Runs) -> None:
    """Open all routes of the pack; ComfyUI adds them to its server once all packs are loaded."""
    server = prompt_server()
    if server is None:
        return
    runs.sweep()
    PanelRoutes(runs).open(server.routes)
    RunRoutes(runs).open(server.routes)
