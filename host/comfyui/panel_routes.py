"""What the page of a training may ask the server: facts and films, and two things to do. No path, no code.

A run is named by its folder's name; where that lies is for `Runs` to say.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, get_args

from ..interface import Ask, Runs
from .panel import ask, remembered, stopped

if TYPE_CHECKING:
    from aiohttp import web

ROUTE = "/rollout_trainer"
LONGEST = 500  # bytes of a request body
FOREVER = {
    "Cache-Control": "private, max-age=31536000, immutable"
}  # the page adds a film's version to its frames


class PanelRoutes:
    """The handlers; what touches the disk runs beside the event loop."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs

    def open(self, routes: web.RouteTableDef) -> None:
        """Add the handlers to the server's table."""
        routes.get(f"{ROUTE}/facts")(self.facts)
        routes.post(f"{ROUTE}/ask")(self.ask)
        routes.get(f"{ROUTE}/runs/{{name}}/film")(self.films)
        routes.get(f"{ROUTE}/runs/{{name}}/film/{{step:[0-9]{{1,12}}}}/{{frame:[0-9]{{1,4}}}}")(self.frame)
        routes.get(f"{ROUTE}/runs/{{name}}/samples")(self.samples)
        routes.get(f"{ROUTE}/runs/{{name}}/samples/{{step:[0-9]{{1,12}}}}/{{number:[0-9]{{1,4}}}}")(
            self.sample
        )

    async def facts(self, request: web.Request) -> web.Response:
        """The newest facts of the nodes of the workflow that is asked for, by node."""
        from aiohttp import web

        workflow = request.query.get("workflow", "")
        kept = await asyncio.to_thread(self._runs.panels, workflow) if workflow else {}
        ended = {node: stopped(data) for node, data in kept.items()}
        return web.json_response(ended | remembered(workflow))

    async def ask(self, request: web.Request) -> web.Response:
        """Pass on what is asked of a training: ``{"node", "prompt_id", "what"}``, what one of `Ask`."""
        from aiohttp import web

        short = request.content_length is not None and request.content_length <= LONGEST
        try:
            ask(**request_body(request.content_type, await request.read() if short else b""))
        except (ValueError, LookupError) as err:
            return web.Response(status=400, text=str(err))
        return web.json_response({})

    async def films(self, request: web.Request) -> web.Response:
        """What the films of a run measured."""
        from aiohttp import web

        try:
            films = await asyncio.to_thread(self._runs.films, request.match_info["name"])
        except LookupError as err:
            raise web.HTTPNotFound(text=str(err)) from err
        return web.json_response(films)

    async def frame(self, request: web.Request) -> web.FileResponse:
        """One picture of a film."""
        from aiohttp import web

        asked = request.match_info
        try:
            path = self._runs.frame(asked["name"], int(asked["step"]), int(asked["frame"]))
        except LookupError as err:
            raise web.HTTPNotFound(text=str(err)) from err
        return web.FileResponse(path, headers=FOREVER)

    async def samples(self, request: web.Request) -> web.Response:
        """What a run drew of the user's prompts."""
        from aiohttp import web

        try:
            drawn = await asyncio.to_thread(self._runs.samples, request.match_info["name"])
        except LookupError as err:
            raise web.HTTPNotFound(text=str(err)) from err
        return web.json_response(drawn)

    async def sample(self, request: web.Request) -> web.FileResponse:
        """One of those pictures."""
        from aiohttp import web

        asked = request.match_info
        try:
            path = self._runs.sample(asked["name"], int(asked["step"]), int(asked["number"]))
        except LookupError as err:
            raise web.HTTPNotFound(text=str(err)) from err
        return web.FileResponse(path, headers=FOREVER)


def request_body(content_type: str, body: bytes) -> dict[str, Any]:
    """What a request asks. Another site's page cannot send this content type without the server's consent.

    Raises:
        ValueError: it is anything else.
    """
    rule = f'the request body must be JSON {{"node", "prompt_id", "what"}}, what one of {", ".join(get_args(Ask))}'
    try:
        asked = json.loads(body) if content_type == "application/json" else None
    except ValueError as err:
        raise ValueError(rule) from err
    if not isinstance(asked, dict) or asked.keys() != {"node", "prompt_id", "what"}:
        raise ValueError(rule)
    if not all(isinstance(value, str) for value in asked.values()) or asked["what"] not in get_args(Ask):
        raise ValueError(rule)
    return asked
