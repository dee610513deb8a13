"""The command line: `python -m rollout_trainer run | trial | validate | nodes`.

Exit codes: 0 done, 1 a node failed, 2 bad input (one line each on stderr, nothing written), 130 cancelled.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from tqdm.contrib.logging import logging_redirect_tqdm

from .host import Cancelled, io, report
from .host.graph.catalog import Catalog, InputSpec, NodeSpec, from_nodes
from .host.graph.normal import Graph, GraphError
from .host.graph.override import override
from .host.graph.reading import parse, read_file
from .host.graph.training import training_alone
from .host.graph.validate import destination_problems, problems, structure_problems
from .host.interface import HostError
from .host.standalone.core_nodes import CORE_NODES
from .host.standalone.host import StandaloneHost, installed, interruptible
from .host.standalone.run import NodeError, run
from .host.terminal import close_bars
from .messages import one_line
from .training.trainer.ranks import launched

if TYPE_CHECKING:
    from .host.remote import Installation

FAILED, BAD_INPUT, CANCELLED = 1, 2, 130

NodeClasses = Sequence[type[io.ComfyNode]] | None
"""Node classes to run; None for the pack's own."""


def main(arguments: Sequence[str] | None = None, nodes: NodeClasses = None) -> int:
    """Run one command; its exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(message)s")
    rank = launched()
    logging.getLogger(__package__).setLevel(logging.INFO if rank.first else logging.WARNING)
    label = f"rank {rank.rank}: error" if rank.several else "error"
    try:
        return {"run": _run, "trial": _trial, "validate": _validate, "nodes": _nodes}[options.command](
            options, nodes
        )
    except GraphError as err:
        for problem in err.problems:
            print(f"{label}: {one_line(problem)}", file=sys.stderr)
        return BAD_INPUT
    except (NodeError, HostError) as err:
        close_bars()
        # What ComfyUI printed follows line by line; a node's error is one line, whatever it holds.
        message, *printed = str(err).splitlines() if isinstance(err, HostError) and str(err) else [err]
        print(f"{label}: {one_line(message)}", *map(one_line, printed), sep="\n", file=sys.stderr)
        if options.verbose:
            traceback.print_exception(err)
        return FAILED
    except ImportError as err:
        print(f"error: cannot import the pack ({err}); install its requirements.txt", file=sys.stderr)
        return FAILED
    except (MemoryError, RecursionError) as err:
        print(f"error: {options.command} must fit into memory, got {type(err).__name__}", file=sys.stderr)
        return FAILED
    except BrokenPipeError:  # whoever reads (`| head`) has seen enough; leave nothing to flush at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("Stopped at once; what was saved before is complete.", file=sys.stderr)
        return CANCELLED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rollout_trainer", description="Train LoRAs from a workflow file.")
    parser.set_defaults(verbose=False)
    commands = parser.add_subparsers(dest="command", required=True)
    shared = _graph_options()
    execute = commands.add_parser("run", parents=[shared], help="check a workflow and run it")
    out_help = "folder for all results (default: out)"
    execute.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help=out_help)
    _add_trial(
        commands.add_parser("trial", parents=[shared], help="train a workflow in several ways and compare")
    )
    commands.add_parser("validate", parents=[shared], help="check a workflow and run nothing")
    listing = commands.add_parser("nodes", help="list nodes with their inputs, defaults and ranges")
    listing.add_argument("name", nargs="?", help="only nodes with this text in their name")
    return parser


def _graph_options() -> argparse.ArgumentParser:
    """What `run` and `validate` share."""
    shared = argparse.ArgumentParser(add_help=False)
    graph_help = "workflow: JSON (saved or API format), or a PNG that carries one"
    shared.add_argument("graph", type=Path, help=graph_help)
    set_help = "change a widget; NODE is an id, a title or a class (repeatable)"
    shared.add_argument("--set", action="append", default=[], metavar="NODE.WIDGET=VALUE", help=set_help)
    shared.add_argument(
        "--device", help="where to compute, such as cuda:1 or cpu; default: the best one here"
    )
    comfyui_help = "run in this ComfyUI installation, which has the nodes of other packs; it is not changed"
    shared.add_argument("--comfyui", type=Path, metavar="DIR", help=comfyui_help)
    python_help = "interpreter of that installation (default: the one in its venv)"
    shared.add_argument("--comfyui-python", type=Path, metavar="PATH", help=python_help)
    shared.add_argument("-v", "--verbose", action="store_true", help="log more, and show tracebacks")
    return shared


def _add_trial(trial: argparse.ArgumentParser) -> None:
    """What `trial` takes."""
    arms_help = (
        "two to four ways to train: NAME is the workflow as it is, 'NAME=NODE.WIDGET=VALUE;NODE.WIDGET=VALUE' changes "
        "it; the others are compared with the first"
    )
    trial.add_argument("--arms", nargs="+", required=True, metavar="NAME[=SETTINGS]", help=arms_help)
    trial.add_argument("--seeds", type=int, default=2, help="runs of every arm, 1 to 15 (default: 2)")
    equal_help = "what all arms have alike: compute in forward evaluations (default), or steps"
    trial.add_argument("--equal", choices=("compute", "steps"), default="compute", help=equal_help)
    cfg_help = "guidance scales that pictures are drawn with (default: 1 2)"
    trial.add_argument("--cfg", type=float, nargs="+", metavar="SCALE", help=cfg_help)
    out_help = "folder of the trial; one that was cut off goes on there (default: out)"
    trial.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help=out_help)


def _trial(options: argparse.Namespace, nodes: NodeClasses) -> int:
    from .nodes.trial import ArmSettings, conduct, drawing, trial_of

    if options.comfyui is not None:
        raise GraphError("a trial must run here, got --comfyui; leave it out")
    host = _host(options, options.out)
    if unwritable := destination_problems(options.out):
        raise GraphError(*unwritable)
    known = _known_nodes(nodes)
    graph, wrong = _read(options, from_nodes(known))
    if wrong:
        raise GraphError(*wrong)
    arms = [ArmSettings.parsed(text) for text in options.arms]
    say = partial(print, file=sys.stderr, flush=True)
    try:
        with interruptible(host), installed(host), logging_redirect_tqdm():
            settings = {"seeds": options.seeds, "equal": options.equal, "drawing": drawing(options.cfg)}
            trial = trial_of(graph, known, host, arms, **settings)
            print(conduct(trial, host.out / "trial", host, say))
    except Cancelled:
        print("Cancelled; the same command goes on from here", file=sys.stderr)
        return CANCELLED
    except ValueError as err:
        raise GraphError(str(err)) from err
    print(f"Trial: {host.out / 'trial'}")
    return 0


def _run(options: argparse.Namespace, nodes: NodeClasses) -> int:
    host, rank = _host(options, options.out), launched()
    unwritable = destination_problems(options.out)
    begun = time.perf_counter()
    try:
        if options.comfyui is None:
            catalog = _catalog(nodes)
            graph = _checked_graph(options, host, catalog, unwritable)
            with interruptible(host, patient=rank.several), logging_redirect_tqdm():
                if rank.first:
                    run(graph, catalog, host, _announce)
                else:
                    run(training_alone(graph, catalog), catalog, host)
        else:
            if unwritable:
                raise GraphError(*unwritable)
            with interruptible(host, patient=rank.several):
                _run_in_comfyui(options, host)
    except Cancelled:
        pass
    if not rank.first:
        return 0
    _finish(options, host, time.perf_counter() - begun)
    return CANCELLED if host.cancel_requested() else 0


def _remote() -> ModuleType:
    """What starts a ComfyUI. It starts processes, so the archive of ComfyUI's registry has none of it.

    Raises:
        HostError: this is such an archive.
    """
    if not (Path(__file__).parent / "host" / "remote.py").is_file():
        raise HostError(
            "--comfyui must be run from a clone, got the archive of ComfyUI's registry, which starts no processes; "
            "git clone https://github.com/rollout-trainer/rollout-trainer"
        )
    from .host import remote

    return remote


def _run_in_comfyui(options: argparse.Namespace, host: StandaloneHost) -> None:
    remote = _remote()
    installation = remote.find_installation(options.comfyui, options.comfyui_python)
    read_file(options.graph)  # a file that is none needs no server to tell
    rank = launched()
    if rank.first:
        print(f"Starting ComfyUI in {installation.folder}", file=sys.stderr)
    with remote.started(installation, host, _device(options)) as server:
        catalog = server.catalog()
        graph = _foreign_graph(options, catalog, installation)
        server.run(graph if rank.first else training_alone(graph, catalog), host, shown=rank.first)


def _validate(options: argparse.Namespace, nodes: NodeClasses) -> int:
    host = _host(options, Path("out"))
    if options.comfyui is None:
        graph = _checked_graph(options, host, _catalog(nodes), [])
    else:
        remote = _remote()
        installation = remote.find_installation(options.comfyui, options.comfyui_python)
        with remote.started(installation, host, options.device) as server:
            graph = _foreign_graph(options, server.catalog(), installation)
    print(f"{options.graph} is valid: {len(graph.nodes)} nodes")
    return 0


def _catalog(nodes: NodeClasses) -> Catalog:
    """The nodes that a workflow may have here."""
    return from_nodes(_known_nodes(nodes))


def _known_nodes(nodes: NodeClasses) -> list[type[io.ComfyNode]]:
    """The few of ComfyUI's own nodes, and `nodes`."""
    if nodes is None:
        from .nodes import RolloutTrainerExtension

        nodes = asyncio.run(RolloutTrainerExtension().get_node_list())
    return [*CORE_NODES, *nodes]


def _device(options: argparse.Namespace) -> str | None:
    """Where to compute: what was asked for; one of several processes has the card of its number."""
    rank = launched()
    if rank.several and options.device in (None, "cuda") and torch.cuda.is_available():
        return f"cuda:{rank.local_rank}"
    return options.device


def _host(options: argparse.Namespace, out: Path) -> StandaloneHost:
    if options.device is not None and options.comfyui is None:
        try:
            torch.empty(0, device=options.device)
        except (RuntimeError, AssertionError) as err:
            raise GraphError(f"--device must be a device of this machine, got {options.device!r}") from err
    return StandaloneHost(
        out, folder=options.graph.parent, device=_device(options), quiet=not launched().first
    )


def _checked_graph(
    options: argparse.Namespace, host: StandaloneHost, catalog: Catalog, found: Sequence[str]
) -> Graph:
    """The graph to run, with `--set` applied.

    Raises:
        GraphError: with everything that is wrong, the problems `found` elsewhere included.
    """
    graph, wrong = _read(options, catalog)
    with installed(host):
        wrong = [*found, *wrong, *problems(graph, catalog)]
    if wrong:
        raise GraphError(*wrong)
    return graph


def _foreign_graph(options: argparse.Namespace, catalog: Catalog, installation: Installation) -> Graph:
    """The graph to queue in a ComfyUI, which checks the values itself: it knows dynamic inputs and files.

    Raises:
        GraphError: with everything that is wrong.
    """
    graph, wrong = _read(options, catalog)
    wrong += structure_problems(graph, catalog, f"install its pack in {installation.folder}")
    if wrong:
        raise GraphError(*wrong)
    return graph


def _read(options: argparse.Namespace, catalog: Catalog) -> tuple[Graph, list[str]]:
    """The graph with all settings that fit, and what is wrong with the others."""
    graph = parse(read_file(options.graph), catalog)
    wrong: list[str] = []
    for setting in options.set:
        try:
            graph = override(graph, catalog, setting)
        except GraphError as err:
            wrong += err.problems
    return graph, wrong


def _announce(number: int, count: int, title: str) -> None:
    print(f"[{number}/{count}] {title}", file=sys.stderr)


def _finish(options: argparse.Namespace, host: StandaloneHost, seconds: float) -> None:
    """Write the report and say what there is; a run that was cancelled before it did anything leaves nothing."""
    saved = host.sections.get("saved")
    if host.cancel_requested():
        print(f"Cancelled; state saved in {saved}" if saved else "Cancelled")
    if not host.sections and not host.images:
        return
    peak = report.peak_memory_mb(of_children=options.comfyui is not None)
    own = {"workflow": str(options.graph), "images": host.images, "cancelled": host.cancel_requested()}
    facts = {"run_seconds": round(seconds, 3), "peak_memory_mb": peak}
    report.write(host.out / "report.json", {**report.SECTIONS, **host.sections, **own, **facts})
    for label, text in host.sections.get("texts", {}).items():
        print(f"{label}: {text}")
    if host.sections.get("lora"):
        print(f"LoRA: {host.sections['lora']}")
    if host.images:
        print(f"{len(host.images)} images in {host.out}")
    print(f"Report: {host.out / 'report.json'}")


def _nodes(options: argparse.Namespace, nodes: NodeClasses) -> int:
    wanted = (options.name or "").lower()
    for spec in _catalog(nodes).values():
        if wanted in spec.class_type.lower():
            print("\n".join(_describe(spec)))
    return 0


def _describe(spec: NodeSpec) -> list[str]:
    lines = [f"{spec.class_type} ({spec.title})"]
    if spec.description:
        lines.append(spec.description)
    lines += [f"  {item.name}: {_describe_input(item)}" for item in spec.inputs]
    return lines + [f"  -> {output.name}: {output.type}" for output in spec.outputs]


def _describe_input(spec: InputSpec) -> str:
    parts = [spec.type if spec.options is None else " | ".join(map(str, spec.options))]
    if spec.min is not None or spec.max is not None:
        parts.append(f"{'' if spec.min is None else spec.min}..{'' if spec.max is None else spec.max}")
    if spec.default is not None:
        parts.append(f"default {json.dumps(spec.default, ensure_ascii=False)}")
    if not spec.required:
        parts.append("optional")
    return ", ".join(parts) + (f". {spec.tooltip}" if spec.tooltip else "")


if __name__ == "__main__":
    sys.exit(main())
