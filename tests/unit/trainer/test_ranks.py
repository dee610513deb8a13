"""Several processes are one: the same LoRA, the same state, one end; and the deal of rows."""

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
import torch
from everything import EVERYTHING, same

from rollout_trainer.training.checks import to_plain
from rollout_trainer.training.lora.adapter import LoRAConfig
from rollout_trainer.training.objective.config import ReflexFlowConfig, RolloutConfig
from rollout_trainer.training.objective.rollout import RolloutPlan
from rollout_trainer.training.runs.folder import RunFolder
from rollout_trainer.training.runs.run import reopen, start, train
from rollout_trainer.training.trainer.deal import deal, share_of
from rollout_trainer.training.trainer.ranks import ALONE, Ranks, cards_told, launched

PROCESS = Path(__file__).parents[1] / "rank_process.py"
ALL = {**EVERYTHING, "lora": LoRAConfig(rank=2, alpha=2.0), "batch_size": 4}


@pytest.fixture(scope="module")
def server():
    """A process that has imported everything and forks ranks."""
    with subprocess.Popen(
        [sys.executable, PROCESS],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        while process.stdout.readline() != "ready\n":
            assert process.poll() is None
        yield process
        process.stdin.close()


@pytest.fixture
def ranks(server, tmp_path):
    """Run the ranks of a job, each a process of one thread; what became of them."""

    def run(job, size=2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for old in tmp_path.glob("answer-*.json"):
            old.unlink()
        job = {**job, "folder": str(tmp_path), "size": size, "port": port}
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        return json.loads(server.stdout.readline())

    return run


@pytest.fixture
def trained(ranks):
    """Run ranks that all come to their end; the folder of their run."""

    def run(job, size=2):
        answers = ranks(job, size)
        assert all("run" in answer for answer in answers), answers
        assert (
            len({answer["digest"] for answer in answers}) == 1
        )  # every rank holds the same state, bit for bit
        return RunFolder(Path(answers[0]["run"]))

    return run


def job_of(tmp_path, config, steps=9, **more):
    return {"root": str(tmp_path / "runs"), "steps": steps, "settings": to_plain(config), **more}


def data_of(make_data):
    return make_data(sizes=(8, 6), masked=True, variants=2)


def near(a, b, counts=True):
    """Whether two states have the same parts, their weights within 1e-5 of each other, all else alike."""
    assert a.tensors.keys() == b.tensors.keys()
    for name, one in a.tensors.items():
        other = b.tensors[name]
        assert one.shape == other.shape, name
        if name.startswith(("rng.", "order.")):
            assert torch.equal(one, other), name
        elif name.startswith(("adapter.", "average.", "pool.", "history.")):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4, equal_nan=True, msg=name)
    assert not counts or a.values["meter"]["rows"] == b.values["meter"]["rows"]


ROLLOUTS = {
    "plain": {"rollout": RolloutConfig()},
    "everything": {},
    "ReflexFlow off": {"rollout": replace(ALL["rollout"], reflexflow=ReflexFlowConfig("off"), reuse=1)},
    "always rolled": {
        "rollout": RolloutConfig(max_step_offset=10, probability=1.0, steps_per_trajectory=20),
        "accumulation": 1,
    },
    "preserve": {"rollout": replace(ALL["rollout"], preserve="a cat\na dog", preserve_rows=3)},
}


@pytest.mark.parametrize("name", ROLLOUTS)
def test_two_processes_are_one_with_the_same_batch(
    name, trained, make_source, make_data, make_config, tmp_path
):
    """Rollouts, ReflexFlow, reuse, accumulation, masks, two buckets, EMA: one state, but for the order of sums."""
    config = make_config(**{**ALL, **ROLLOUTS[name]})
    folder = trained(job_of(tmp_path, config))
    alone = train(start(tmp_path, "t", make_source("flow"), data_of(make_data), config), 9)
    near(folder.load(9), alone.state)
    begun = folder.load(0, "adapter").tensors
    assert any(
        not torch.allclose(begun[k], v, atol=1e-3) for k, v in folder.load(9, "adapter").tensors.items()
    )


def test_three_ranks_share_a_batch_that_they_do_not_divide(
    trained, make_source, make_data, make_config, tmp_path
):
    config = make_config(**ALL)
    folder = trained(job_of(tmp_path, config), size=3)
    alone = train(start(tmp_path, "t", make_source("flow"), data_of(make_data), config), 9)
    near(folder.load(9), alone.state)


def test_a_state_resumes_on_any_number_of_ranks(trained, make_source, make_data, make_config, tmp_path):
    """Four steps on two, three on one, two on two again: what one process makes in nine."""
    config = make_config(**ALL)
    folder = trained(job_of(tmp_path, config, steps=4))
    train(reopen(folder.path, make_source("flow"), data_of(make_data)), 3)
    trained(job_of(tmp_path, config, steps=2, run=str(folder.path)))
    assert folder.steps() == [0, 4, 7, 9]
    alone = train(start(tmp_path, "t", make_source("flow"), data_of(make_data), config), 9)
    near(folder.load(9), alone.state)
    assert folder.config() == alone.folder.config()  # nothing in it says how many there were


def test_the_best_moment_of_two_ranks_is_that_of_one_also_after_a_resume(
    trained, make_source, make_data, make_config, tmp_path
):
    """Pictures held out, slowed states and the best moment at once: five steps on two ranks, four on one."""
    slowed = RolloutConfig(target="mixflow", probability=0.5, gamma=0.4)
    held = {"hold_out": 0.25, "validate_every": 2, "patience": 50}
    config = make_config(**{**ALL, "rollout": slowed, **held})
    folder = trained(job_of(tmp_path, config, steps=5))
    train(reopen(folder.path, make_source("flow"), data_of(make_data)), 4)
    run = start(tmp_path, "t", make_source("flow"), data_of(make_data), config)
    alone = train(run, 9).folder.load(9)
    resumed = folder.load(9)
    near(resumed, alone)
    best, own = resumed.values["best"], alone.values["best"]
    assert best["step"] == own["step"] > 0
    assert best["loss"] == pytest.approx(own["loss"], rel=1e-4)
    assert run.validation is not None
    assert len(run.data) + len(run.validation) == len(data_of(make_data))


def test_a_launch_of_one_is_no_launch(trained, make_source, make_data, make_config, tmp_path):
    config = make_config(**ALL)
    folder = trained(job_of(tmp_path, config), size=1)
    alone = train(start(tmp_path, "t", make_source("flow"), data_of(make_data), config), 9)
    assert same(folder.load(9), alone.state)


# --- whatever ends one rank ends all, with the state saved ---------------------------------------


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stop_of_one_rank_stops_all(rank, ranks, make_config, tmp_path):
    job = job_of(tmp_path, make_config(**ALL), steps=100_000, stop_at=[rank, 5])
    answers = ranks(job)
    assert answers[rank]["error"] == "Stopped: told to stop"
    assert answers[1 - rank]["error"] == "RankStopped: told to stop"
    assert RunFolder(tmp_path / "runs" / "ranks-0001").steps() == [0, 5]


@pytest.mark.parametrize("where", ["between steps", "in a step"])
@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_one_rank_ends_all(where, rank, ranks, make_config, tmp_path):
    how = {"fail_at": [rank, 5]} if where == "between steps" else {"sabotage": [rank, "raise", 15]}
    job = job_of(tmp_path, make_config(**ALL), steps=100_000, **how)
    answers = ranks(job)
    assert answers[rank]["error"] == "RuntimeError: out of memory"
    assert answers[1 - rank]["error"] == f"RankFailedError: rank {rank} stopped: out of memory"
    assert len(RunFolder(tmp_path / "runs" / "ranks-0001").steps()) == 2


@pytest.mark.parametrize(("rank", "size"), [(0, 2), (1, 2), (0, 3), (1, 3)])
def test_a_rank_that_is_killed_ends_all_with_the_state_saved(
    rank, size, ranks, make_source, make_data, make_config, tmp_path
):
    """SIGKILL in the middle of a step. Nothing of that step is in the state, and it can be gone on with."""
    config = make_config(**ALL)
    job = job_of(tmp_path, config, steps=100_000, sabotage=[rank, "kill", 30])
    answers = ranks(job, size)
    assert answers[rank]["signal"] == signal.SIGKILL
    assert max(answer["ended"] for answer in answers) - answers[rank]["ended"] < 30
    for other in set(range(size)) - {rank}:
        assert answers[other]["error"].startswith(f"RankLostError: rank {rank} ("), answers[other]
    folder = RunFolder(tmp_path / "runs" / "ranks-0001")
    last = folder.steps()[-1]
    assert last > 0
    alone = train(start(tmp_path, "t", make_source("flow"), data_of(make_data), config), last)
    near(folder.load(last), alone.state, counts=False)  # the step that did not end was counted


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_rollout_that_leaves_the_finite_numbers_on_one_rank_is_skipped_by_all(
    accumulation, trained, make_config, tmp_path
):
    rollout = RolloutConfig(max_step_offset=4, probability=1.0, steps_per_trajectory=20)
    config = make_config(**{**ALL, "rollout": rollout, "accumulation": accumulation})
    skipped = (
        trained(job_of(tmp_path, config, sabotage=[1, "nan", 2])).load(9).tensors["history.skipped"].tolist()
    )
    assert skipped == [1.0] + [0.0] * 8


# --- bad input -----------------------------------------------------------------------------------


def test_ranks_that_see_other_data_are_refused(ranks, make_config, tmp_path):
    job = job_of(tmp_path, make_config(**ALL), other_data=1)
    for answer in ranks(job):
        assert answer["error"].startswith("ValueError: data fingerprint must be the same on every rank")
        assert "rank 1" in answer["error"]
    assert not (tmp_path / "runs").exists()


def test_a_batch_smaller_than_the_ranks_is_refused(ranks, make_config, tmp_path):
    job = job_of(tmp_path, make_config(batch_size=1))
    for answer in ranks(job):
        assert answer["error"].startswith("ValueError: batch_size must be at least 2 with 2 processes")


def test_the_environment_says_which_rank_this_is():
    assert launched({}) == launched({"WORLD_SIZE": "1", "RANK": "0"})
    assert not launched({}).several
    third = launched({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"})
    assert (third.rank, third.size, third.local_rank, third.first) == (3, 4, 1, False)


def test_a_node_tells_how_many_cards_train():
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert cards_told(ALONE, cpu, 0) == cards_told(ALONE, cuda, 1) == ""
    assert cards_told(ALONE, cuda, 4).startswith("1 of 4 cards trains; accelerate launch uses all of them")
    several = Ranks()
    several.size = 4
    assert cards_told(several, cuda, 4).startswith("4 processes train together")


# --- the deal ------------------------------------------------------------------------------------


def work(steps):
    """As `Trainer.work` has it for a solver of one call a step, with ReflexFlow."""
    return 2 + steps + (1 if steps else 0)


def straggling(size, per_rank, probability, steps=400):
    """Work of the busiest rank over the mean rank's, summed over optimiser steps."""
    g = torch.Generator().manual_seed(0)
    busiest = mean = 0.0
    for _ in range(steps):
        n = size * per_rank
        lengths = torch.randint(11, (n,), generator=g) * (torch.rand(n, generator=g) < probability)
        own = [work(k) for k in lengths.tolist()]
        loads = [0.0] * size
        for row, rank in enumerate(deal(own, size)):
            loads[rank] += own[row]
        busiest, mean = busiest + max(loads), mean + sum(loads) / size
    return busiest / mean


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(("probability", "rows"), [(1.0, 2), (0.5, 4), (0.3, 8)])
def test_ranks_have_little_more_to_do_than_their_mean(size, probability, rows):
    """Rollouts of 0 to 10 steps, so many rows a rank and more."""
    for per_rank in (rows, 2 * rows):
        assert straggling(size, per_rank, probability) <= 1.1


def test_two_ranks_are_dealt_almost_the_best_that_there_is():
    """One row a rank, or one long rollout among few rows, cannot be dealt better: by trying all deals."""
    g = torch.Generator().manual_seed(0)
    dealt = best = 0.0
    for n in (2, 4, 6, 8) * 40:
        own = [work(k) for k in torch.randint(11, (n,), generator=g).tolist()]
        owner = deal(own, 2)
        halves = [sum(own[i] for i in rows) for rows in combinations(range(n), n // 2)]
        dealt += max(sum(w for w, rank in zip(own, owner, strict=True) if rank == r) for r in (0, 1))
        best += min(max(half, sum(own) - half) for half in halves)
    assert dealt <= 1.005 * best


@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_row_is_dealt_once_and_no_rank_gets_more_rows_than_its_part(size):
    g = torch.Generator().manual_seed(1)
    for n in range(size, 20):
        steps = torch.randint(5, (n,), generator=g)
        rows = steps.nonzero()[:, 0]
        u = torch.rand(len(rows), generator=g, dtype=torch.float64)
        plan = RolloutPlan(rows, steps[rows], u, u) if len(rows) else None
        shares = [share_of(rank, size, n, plan, work) for rank in range(size)]
        assert torch.cat([share.rows for share in shares]).sort().values.tolist() == list(range(n))
        assert 1 <= min(len(s.rows) for s in shares) <= max(len(s.rows) for s in shares) <= -(-n // size)
        assert sum(share.weight for share in shares) == pytest.approx(1)
        for share in shares:
            if share.plan is not None:
                assert torch.equal(share.rows[share.plan.rows], rows[share.planned])
                assert torch.equal(share.plan.steps, steps[share.rows[share.plan.rows]])
