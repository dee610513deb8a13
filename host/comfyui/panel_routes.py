"""What the page of a training may ask the server: facts and films, and two things to do. No path, no code.

A run is named by its folder's name; where that lies is for `find_run` to say.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from aiohttp import web

from ..interface import Ask
from . import panel as events
from . import panel_files
from .host import current

ROOT = "/rollout_trainer"
LONGEST = 500  # bytes of a question
FOREVER = {
    "Cache-Control": "private, max-age=31536000, immutable"
}  # the page adds a film's version to its frames

_kept = panel_files.Kept()


def serve(find_run: Callable[[Path, str], Path]) -> None:
    """Open the routes; ComfyUI adds them to its server once all packs are loaded.

    Args:
        find_run: the folder of a run by its name; raises LookupError if there is none.
    """
    server = events.prompt_server()
    if server is None:
        return

    def run_of(request: web.Request) -> Path:
        try:
            return find_run(current().runs_dir(), request.match_info["name"])
        except LookupError as err:
            raise web.HTTPNotFound(text=str(err)) from err

    async def films(request: web.Request) -> web.Response:
        """Answer with what the films of a run measured."""
        return web.json_response(await asyncio.to_thread(panel_files.films, run_of(request)))

    async def frame(request: web.Request) -> web.FileResponse:
        """Answer with one picture of a film."""
        step, number = int(request.match_info["step"]), int(request.match_info["frame"])
        try:
            path = panel_files.frame_path(run_of(request), step, number)
        except LookupError as err:
            raise web.HTTPNotFound(text=str(err)) from err
        return web.FileResponse(path, headers=FOREVER)

    server.routes.get(f"{ROOT}/facts")(facts)
    server.routes.post(f"{ROOT}/ask")(ask)
    server.routes.get(f"{ROOT}/runs/{{name}}/film")(films)
    server.routes.get(f"{ROOT}/runs/{{name}}/film/{{step:[0-9]{{1,12}}}}/{{frame:[0-9]{{1,4}}}}")(frame)


async def facts(request: web.Request) -> web.Response:
    """Answer with the newest facts of the nodes of the workflow that is asked for, by node."""
    workflow = request.query.get("workflow", "")
    kept = await asyncio.to_thread(_kept.of, current().runs_dir(), workflow) if workflow else {}
    return web.json_response(kept | events.remembered(workflow))


async def ask(request: web.Request) -> web.Response:
    """Take down what is asked of a training: ``{"node", "prompt_id", "what": "save" or "preview"}``."""
    short = request.content_length is not None and request.content_length <= LONGEST
    try:
        events.ask(**question(request.content_type, await request.read() if short else b""))
    except (ValueError, LookupError) as err:
        return web.Response(status=400, text=str(err))
    return web.json_response({})


def question(content_type: str, body: bytes) -> dict[str, Any]:
    """Read what is asked. Another site's page cannot send this content type without the server's consent.

    Raises:
        ValueError: it is anything else.
    """
    rule = (
        f'the question must be JSON {{"node", "prompt_id", "what"}}, what one of {", ".join(get_args(Ask))}'
    )
    try:
        asked = json.loads(body) if content_type == "application/json" else None
    except ValueError as err:
        raise ValueError(rule) from err
    if not isinstance(asked, dict) or asked.keys() != {"node", "prompt_id", "what"}:
        raise ValueError(rule)
    if not all(isinstance(value, str) for value in asked.values()) or asked["what"] not in get_args(Ask):
        raise ValueError(rule)
    return asked
