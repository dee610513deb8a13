"""What `reliability.py` asks of a real ComfyUI: cancels at random moments, and requests that nobody makes."""

from __future__ import annotations

import json
import random
import re
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import comfyui_process
from comfyui_process import NODES_FOR_TESTS, running
from prompt_builder import PromptBuilder
from safetensors import safe_open

STEPS = 2_000
WAIT = 300.0
"""Seconds that one graph may take."""
STOPPED = re.compile(r"stopped at step (\d+); saved (\S+)")


def training(host: Any, run_name: str) -> tuple[PromptBuilder, str, str]:
    """A training with everything on of a MODEL, and the nodes that train and that sample with the same MODEL."""
    graph = PromptBuilder(host.object_info())
    model = graph.add("TestTinyModel", family="sd3", dtype="float32")
    data = graph.add("TestTinyData", family="sd3", n=4, side=8, ragged=False)
    captions, empty = [data[0], 1], [data[0], 2]
    source = graph.add("RolloutFromComfyModel", model=model)
    own = graph.add(
        "RolloutDatasetFromLatents", model=source, latents=data, conditioning=captions, empty=empty
    )
    rollouts = graph.add(
        "RolloutScheduledSampling",
        max_step_offset=3,
        probability=0.7,
        reflexflow=graph.add("RolloutReflexFlow"),
    )
    lora = graph.add("RolloutLoRASettings", rank=2, alpha=2.0, dropout=0.2)
    run = graph.add(
        "RolloutTrainLoRA", model=source, data=own, steps=STEPS, batch_size=2, caption_dropout=0.1, ema_decay=0.9,
        save_every=3, keep=2, run_name=run_name, scheduled_sampling=rollouts, lora=lora,
    )  # fmt: skip
    sample = graph.add("TestSample", model=model, latents=data, conditioning=captions)
    return graph, run[0], sample[0]


def alone(graph: PromptBuilder, node: str) -> dict[str, Any]:
    """The part of a graph that a node needs."""
    wanted, found = [node], {}
    while wanted:
        name = wanted.pop()
        found[name] = graph.prompt[name]
        wanted += [str(v[0]) for v in graph.prompt[name]["inputs"].values() if isinstance(v, list)]
    return found


@contextmanager
def started(installation: Any, folder: Path) -> Iterator[Any]:
    """That ComfyUI with the pack and the nodes of its tests; it may take its time on a busy machine."""
    comfyui_process.START_TIMEOUT = 2 * WAIT
    with running(installation, folder, [], [NODES_FOR_TESTS]) as host:
        yield host


def cancel_often(installation: Any, folder: Path, tries: int, seed: int, count: Any) -> None:
    """Cancel a training at random moments, and look at the state, the MODEL and the next training."""
    rng = random.Random(seed)
    with started(installation, folder) as host:
        graph, train, sample = training(host, "cancelled")
        before = host.queue(alone(graph, sample), WAIT)["outputs"][sample]
        for i in range(tries):
            graph, train, sample = training(host, f"cancelled{i}")
            told = len(host.log())
            runs = folder / "output" / "rollout_trainer" / "runs"
            prompt_id = host.submit(alone(graph, train))
            wait_for_work(runs / f"cancelled{i}-0001", rng)
            host.interrupt()
            entry = host.wait(prompt_id, WAIT)
            kinds = [name for name, _ in entry["status"]["messages"]]
            fault = "" if "execution_interrupted" in kinds else f"not interrupted: {kinds}"
            found = STOPPED.findall(host.log()[told:])
            if found:
                count.add("during training")
                step, path = found[-1]
                with safe_open(path, "pt") as file:
                    fault = fault or (
                        "" if json.loads(file.metadata()["state"])["step"] == int(step) else "step"
                    )
            else:
                count.add("before the first step")
            left = [p.name for p in runs.rglob("*") if p.name.endswith((".partial", ".lock"))]
            after = host.queue(alone(graph, sample), WAIT)["outputs"][sample]
            if after != before:
                fault = fault or f"the MODEL samples other bits than before: {after} {before}"
            count.one(fault or (f"left: {left}" if left else ""))


def wait_for_work(run: Path, rng: random.Random) -> None:
    """A random moment: while the graph begins, or in the training of `run`, which has saved by then."""
    if rng.random() < 0.2:
        return time.sleep(rng.uniform(0, 0.5))
    deadline = time.monotonic() + WAIT
    while not (run / "state-00000003.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(rng.uniform(0, 2.0))
    return None


SECRET = "a-secret-of-this-machine"
ROUTES = (
    ("GET", "/rollout_trainer/runs/{}"), ("GET", "/rollout_trainer/runs/{}/thumbnail"),
    ("GET", "/rollout_trainer/runs/{}/film"), ("GET", "/rollout_trainer/runs/{}/film/{n}/{n}"),
    ("GET", "/rollout_trainer/runs/{}/samples"), ("GET", "/rollout_trainer/runs/{}/samples/{n}/{n}"),
    ("POST", "/rollout_trainer/runs/{}/lora/{n}"), ("DELETE", "/rollout_trainer/runs/{}"),
    ("GET", "/rollout_trainer/facts?workflow={}"), ("POST", "/rollout_trainer/ask"), ("GET", "/rollout_trainer/runs"),
)  # fmt: skip

BODIES = (
    b"", b"{", b"[" * 5000, b"x" * 100_000, b'{"node": 1}', b'{"node": "1", "prompt_id": "1", "what": "save"}',
)  # fmt: skip
OUTSIDE = ("config.json", "panel.json", "film.json", "samples.json", "00.jpg")
"""Names of files that no answer may tell of."""


def names(folder: Path) -> list[str]:
    """What a request may call a run."""
    return [
        "real-0001", "linked", "inside", ".", "..", "../..", "../../../..", "....//", "/etc", str(folder / "secret"),
        "..\\..", "%2e%2e", "%252e%252e%252f", "real-0001/..", "real-0001/../linked", "a" * 5000, "\0", "a\0b", "\n",
        "\x1b[2J", "con", "NUL", "é", "\u202e", "<script>alert(1)</script>", "'; drop", ".deleted-0", "", " ", "~",
        "file:///etc/passwd", "real-0001%00.png", "*", "?", "real-0001?x=1", "real-0001#", "null", "-1", "1e999",
    ]  # fmt: skip


def request_often(installation: Any, folder: Path, tries: int, seed: int, count: Any) -> None:
    """Send requests of all kinds; an answer is a refusal or says nothing of what lies outside of a run."""
    rng = random.Random(seed)
    with started(installation, folder) as host:
        runs, secret = folder / "output" / "rollout_trainer" / "runs", folder / "secret"
        secret.mkdir()
        for name in OUTSIDE:
            (secret / name).write_text(
                json.dumps({"version": 1, "config": {}, "secret": SECRET, "workflow": "w"})
            )
        real = runs / "real-0001"
        real.mkdir(parents=True)
        (real / "config.json").write_text(json.dumps({"version": 1, "config": {}, "model": {}, "data": {}}))
        (real / "panel.json").symlink_to(secret / "panel.json")
        (runs / "linked").symlink_to(secret)
        (real / "film").mkdir()
        (real / "film" / "step-00000001").symlink_to(secret)
        (real / "samples").mkdir()
        (real / "samples" / "step-00000001").symlink_to(secret)
        before, begun = sorted(p.name for p in runs.iterdir()), len(host.log())
        for _ in range(tries):
            method, route = rng.choice(ROUTES)
            name = rng.choice(names(folder))
            named = (
                name
                if rng.random() < 0.3
                else urllib.parse.quote(name, safe="" if rng.random() < 0.7 else "/")
            )
            path = route.replace("{n}", str(rng.choice((0, 1, 99999999999)))).replace("{}", named)
            headers, body = {}, None
            if method == "POST":
                body = rng.choice(BODIES)
                headers["Content-Type"] = rng.choice(
                    ("application/json", "text/plain", "multipart/form-data")
                )
            if rng.random() < 0.3:
                headers["Origin"] = rng.choice(
                    ("http://evil.example", "null", "https://127.0.0.1.evil.example")
                )
            if rng.random() < 0.3:
                headers["X-Rollout-Trainer"] = "1"
            foreign = "Origin" in headers or "X-Rollout-Trainer" not in headers
            status, answer = asked(host.port, method, path, body, headers)
            count.add(f"{status // 100}xx" if status else "not sent")
            fault = ""
            if status >= 500:
                fault = f"{method} {path[:80]!r}: {status} {answer[:100]!r}"
            elif SECRET in answer:
                fault = f"{method} {path[:80]!r} tells what lies outside"
            elif method == "DELETE" and foreign and status == 200:
                fault = f"deleted for {headers}"
            count.one(fault)
            if not real.exists():  # our own scripts may
                count.add("deleted as asked by its own header")
                real.mkdir()
                (real / "config.json").write_text(
                    json.dumps({"version": 1, "config": {}, "model": {}, "data": {}})
                )
        left = sorted(p.name for p in runs.iterdir())
        if left != before or sorted(p.name for p in secret.iterdir()) != sorted(OUTSIDE):
            count.wrong(f"the folders have changed: {left}")
        _, found, what = host.log()[begun:].partition("Traceback")
        if found:
            count.wrong(f"a traceback in the log: {what[:200]}")


def asked(port: int, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, str]:
    """Status and text of an answer; 0: such a request cannot be sent."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        sent = path if path.isascii() else urllib.parse.quote(path, safe="/%?=&")
        connection.request(method, sent, body, headers)
        reply = connection.getresponse()
        return reply.status, reply.read().decode(errors="replace")
    except (ValueError, OSError, HTTPException) as err:
        return (0, str(err)) if not isinstance(err, TimeoutError) else (599, "no answer in 30 s")
    finally:
        connection.close()
