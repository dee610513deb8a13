"""The ranks of a training, for test_ranks.py: imports once, then forks them for every line that it reads.

A line is a job, {"folder", "size", "port", "root", "steps", "settings", and what else a test asks for}. The answer is a
line too: of each rank what it trained or its error, or the signal that it died of, and the second when it ended.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from killed_training import register_package

register_package()

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from conftest import ToySource, toy_data  # noqa: E402

from rollout_trainer.training.checks import from_plain  # noqa: E402
from rollout_trainer.training.files import digest  # noqa: E402
from rollout_trainer.training.runs.run import reopen, resuming, starting  # noqa: E402
from rollout_trainer.training.trainer.config import TrainConfig  # noqa: E402
from rollout_trainer.training.trainer.ranks import RankStopped, launched  # noqa: E402


class Stopped(BaseException):
    """As a host tells a training to stop."""


def watching(job: dict[str, Any]) -> Any:
    def watch(report: Any) -> None:
        if job.get("stop_at") == [launched().rank, report.step]:
            raise Stopped("told to stop")
        if job.get("fail_at") == [launched().rank, report.step]:
            raise RuntimeError("out of memory")

    return watch


def sabotage(job: dict[str, Any], source: ToySource) -> None:
    """What goes wrong inside a step on this rank, at its n-th model call."""
    rank, kind, n = job.get("sabotage", (None, None, 0))
    if rank != launched().rank:
        return
    forward = source.module.forward

    def wrong(*args: Any) -> Any:
        wrong.calls += 1
        if wrong.calls == n and kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if wrong.calls == n and kind == "raise":
            raise RuntimeError("out of memory")
        out = forward(*args)
        return out * torch.nan if wrong.calls == n and kind == "nan" else out

    wrong.calls = 0
    source.module.forward = wrong


def train(job: dict[str, Any]) -> dict[str, Any]:
    data = toy_data(sizes=(8, 6), masked=True, variants=2)
    if job.get("other_data") == launched().rank:
        data = replace(data, fingerprint="other")
    source = ToySource()
    sabotage(job, source)
    config = from_plain(TrainConfig, job["settings"])
    if "run" in job:
        opening = resuming(reopen(job["run"], source, data))
    else:
        opening = starting(job["root"], "ranks", source, data, config)
    with opening as stage:
        run = stage.train(job["steps"], watching(job))
        tensors = stage.trainer.state().tensors
        mine = {k: v for k, v in tensors.items() if not k.startswith("history.")}
        return {"run": str(run.folder.path), "digest": digest(mine.items(), sample=None)}


def plain_alone(function: Any, position: int) -> Any:
    """An exchange of objects that refuses our own classes: in a ComfyUI they have other names in each process."""

    def checked(*args: Any, **kwargs: Any) -> Any:
        assert b"rollout_trainer" not in pickle.dumps(args[position])
        return function(*args, **kwargs)

    return checked


dist.all_gather_object = plain_alone(dist.all_gather_object, 1)
dist.broadcast_object_list = plain_alone(dist.broadcast_object_list, 0)


def rank(job: dict[str, Any], number: int) -> None:
    """Train as one rank, in a process of its own; the answer goes into a file."""
    signal.alarm(150)
    os.environ |= {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(job["size"]),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(job["port"]),
        "ACCELERATE_USE_CPU": "true",
    }
    try:
        answer = train(job)
    except (Exception, Stopped, RankStopped) as err:
        answer = {"error": f"{type(err).__name__}: {err}"}
    Path(job["folder"], f"answer-{number}.json").write_text(json.dumps(answer | {"rank": number}))
    os._exit(0)


def answers(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Fork the ranks, wait for all of them."""
    pids = {}
    for number in range(job["size"]):
        pid = os.fork()
        if pid == 0:
            try:
                rank(job, number)
            finally:
                os._exit(1)
        pids[pid] = number
    found: dict[int, dict[str, Any]] = {}
    while len(found) < job["size"]:
        pid, status = os.wait()
        path = Path(job["folder"], f"answer-{pids[pid]}.json")
        answer = json.loads(path.read_text()) if path.exists() else {"signal": os.WTERMSIG(status)}
        found[pids[pid]] = answer | {"ended": time.monotonic()}
    return [found[number] for number in range(job["size"])]


if __name__ == "__main__":
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(answers(json.loads(line))), flush=True)
