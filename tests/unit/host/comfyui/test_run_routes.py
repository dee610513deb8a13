"""The run browser's routes on a bare aiohttp server: what gets in, what gets out, and what does not."""

import asyncio
import sys
import threading
import types
from urllib.parse import quote

import pytest
from hostile_names import HEADER, OUTSIDE, RUNS, ask

from rollout_trainer.host.comfyui import panel as events
from rollout_trainer.host.comfyui.panel_routes import request_body
from rollout_trainer.host.comfyui.run_routes import serve
from rollout_trainer.training.runs.browse import Runs
from rollout_trainer.training.runs.folder import DELETED, RunFolder

web = pytest.importorskip("aiohttp.web")

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture
def root(tmp_path):
    """A runs folder with two runs and a link; a run beside it that is nobody's business."""
    for name in ("run", EVIL):
        RunFolder.create(tmp_path / "runs", name, {"model": {"name": EVIL}})
    RunFolder.create(tmp_path, "secret", {}).path.rename(tmp_path / "secret")
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "runs" / f"{DELETED}0").mkdir()
    return tmp_path / "runs"


@pytest.fixture
def running(monkeypatch):
    """Ids of the prompts that are executed now."""
    running = []
    queue = types.SimpleNamespace(get_current_queue_volatile=lambda: (list(running), []))
    instance = types.SimpleNamespace(prompt_queue=queue, routes=web.RouteTableDef())
    module = types.SimpleNamespace(PromptServer=types.SimpleNamespace(instance=instance))
    monkeypatch.setitem(sys.modules, "server", module)
    monkeypatch.setattr(events, "_newest", type(events._newest)())
    return running


@pytest.fixture
def port(root, running):
    """Where a server answers that has our routes as ComfyUI adds them."""
    serve(Runs(root, root.parent, root.parent / "loras"))
    loop = asyncio.new_event_loop()

    async def start():
        app = web.Application()
        app.add_routes(sys.modules["server"].PromptServer.instance.routes)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return runner

    runner = loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield runner.addresses[0][1]
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_names_come_as_json_and_nothing_else(port, root):
    status, headers, listed = ask(port, "GET", RUNS)
    assert (status, headers["Content-Type"]) == (200, "application/json; charset=utf-8")
    assert (headers["X-Content-Type-Options"], headers["Cache-Control"]) == ("nosniff", "no-store")
    assert {run["name"] for run in listed["runs"]} == {"run-0001", f"{EVIL}-0001"}
    assert listed["skipped"] == ["link"]
    status, headers, details = ask(port, "GET", f"{RUNS}/{quote(EVIL)}-0001")
    assert (status, details["name"], details["model"]) == (200, f"{EVIL}-0001", EVIL)
    assert headers.get_content_type() == "application/json"


def test_what_an_interrupted_deletion_left_is_gone_when_the_server_is_up(port, root):
    assert not list(root.glob(f"{DELETED}*"))


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize(("method", "tail"), [("GET", ""), ("GET", "/thumbnail"), ("DELETE", "")])
def test_nothing_outside_is_answered_or_deleted(method, tail, name, port, root):
    before = sorted(root.parent.rglob("*"))
    status, _, answer = ask(port, method, f"{RUNS}/{name}{tail}", HEADER)
    assert status in (400, 403, 404, 405)
    assert str(root) not in repr(answer)
    assert sorted(root.parent.rglob("*")) == before


def test_a_thumbnail_is_a_picture_and_nothing_else(port, root):
    assert ask(port, "GET", f"{RUNS}/run-0001/thumbnail")[0] == 404
    film = root / "run-0001" / "film" / "step-00000004"
    film.mkdir(parents=True)
    (film / "00.jpg").write_bytes(b"<script>alert(1)</script>")
    (film / "film.json").write_text("{}")
    status, headers, body = ask(port, "GET", f"{RUNS}/run-0001/thumbnail")
    assert (status, body) == (200, b"<script>alert(1)</script>")
    assert (headers["Content-Type"], headers["X-Content-Type-Options"]) == ("image/jpeg", "nosniff")


def test_a_run_is_deleted_by_our_own_scripts_alone(port, root):
    assert ask(port, "DELETE", f"{RUNS}/run-0001")[0] == 403
    assert ask(port, "DELETE", f"{RUNS}/run-0001", {"Content-Type": "application/json"})[0] == 403
    assert (root / "run-0001").is_dir()
    assert ask(port, "DELETE", f"{RUNS}/run-0001", HEADER)[0] == 200
    assert not (root / "run-0001").exists()
    assert ask(port, "DELETE", f"{RUNS}/run-0001", HEADER)[0] == 404


def test_a_lora_is_saved_by_our_own_scripts_alone_and_only_of_a_state_that_is_there(port, root, monkeypatch):
    asked = []
    monkeypatch.setattr(Runs, "save_lora", lambda self, *args: (asked.append(args), "run.safetensors")[1])
    assert ask(port, "POST", f"{RUNS}/run-0001/lora/3")[0] == 403
    status, _, body = ask(port, "POST", f"{RUNS}/run-0001/lora/3", HEADER)
    assert (status, body) == (200, {"file": "run.safetensors"})
    assert asked == [("run-0001", 3)]
    assert ask(port, "POST", f"{RUNS}/run-0001/lora/-1", HEADER)[0] == 404
    monkeypatch.undo()
    assert ask(port, "POST", f"{RUNS}/run-0001/lora/3", HEADER)[0] == 404
    assert ask(port, "POST", f"{RUNS}/secret/lora/0", HEADER)[0] == 404


def test_a_run_in_training_is_not_deleted(port, root):
    with RunFolder(root / "run-0001").held():
        status, _, answer = ask(port, "DELETE", f"{RUNS}/run-0001", HEADER)
        assert status == 409
        assert "stop it before deleting it" in answer["error"]
    assert ask(port, "DELETE", f"{RUNS}/run-0001", HEADER)[0] == 200


def test_a_run_between_two_stages_of_a_graph_is_not_deleted(port, running):
    events.remember({"workflow": "w", "node": "8", "prompt_id": "p", "run": "run-0001"})
    running.append((0, "p", {}, {}, []))
    assert {run["name"]: run["training"] for run in ask(port, "GET", RUNS)[2]["runs"]}["run-0001"]
    assert ask(port, "DELETE", f"{RUNS}/run-0001", HEADER)[0] == 409
    running.clear()
    assert ask(port, "DELETE", f"{RUNS}/run-0001", HEADER)[0] == 200


def test_what_ran_has_stopped_when_the_server_is_up_again(port, root):
    facts = {"workflow": "w", "node": "8", "prompt_id": "p", "state": "running", "seconds_left": 5, "step": 2}
    RunFolder(root / "run-0001").keep_panel(facts)
    status, _, told = ask(port, "GET", "/rollout_trainer/facts?workflow=w")
    assert (status, told) == (200, {"8": facts | {"state": "stopped", "seconds_left": None}})
    assert ask(port, "GET", "/rollout_trainer/facts?workflow=")[2] == {}


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("tail", ["/film", "/film/4/0"])
def test_no_film_outside_is_answered(tail, name, port):
    assert ask(port, "GET", f"{RUNS}/{name}{tail}")[0] in (400, 403, 404, 405)


def test_films_are_numbers_and_pictures_that_may_be_kept(port, root):
    folder = RunFolder(root / "run-0001").film_folder(4)
    folder.mkdir(parents=True)
    (folder / "00.jpg").write_bytes(b"jpeg")
    (folder / "film.json").write_text('{"step": 4}')
    (told,) = ask(port, "GET", f"{RUNS}/run-0001/film")[2]
    assert told["step"] == 4
    status, headers, body = ask(port, "GET", f"{RUNS}/run-0001/film/4/0?version={told['version']}")
    assert (status, body) == (200, b"jpeg")
    assert "immutable" in headers["Cache-Control"]
    assert ask(port, "GET", f"{RUNS}/run-0001/film/4/1")[0] == 404


def test_only_json_of_the_right_form_is_passed_on_to_a_training():
    rule = "the request body must be JSON"
    body = '{"node": "8", "prompt_id": "p", "what": "save"}'
    assert request_body("application/json", body.encode()) == {"node": "8", "prompt_id": "p", "what": "save"}
    wrong = [
        "",
        "[]",
        "{",
        body.replace("save", "stop"),
        body.replace('"8"', "8"),
        body.replace("}", ', "x": 1}'),
    ]
    for content_type, text in [("text/plain", body), *(("application/json", text) for text in wrong)]:
        with pytest.raises(ValueError, match=rule):
            request_body(content_type, text.encode())
