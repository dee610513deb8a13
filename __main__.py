"""The command line: `python -m rollout_trainer run | validate | nodes`.

Exit codes: 0 done, 1 a node failed, 2 bad input (one line each on stderr, nothing written), 130 cancelled.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.contrib.logging import logging_redirect_tqdm

from .host import Cancelled, io, report
from .host.catalog import Catalog, InputSpec, NodeSpec, from_nodes
from .host.core_nodes import CORE_NODES
from .host.graph import Graph, GraphError, parse, read_file
from .host.override import override
from .host.run import NodeError, run
from .host.standalone import StandaloneHost, installed, interruptible
from .host.validate import destination_problems, problems

FAILED, BAD_INPUT, CANCELLED = 1, 2, 130


def main(arguments: Sequence[str] | None = None, nodes: Sequence[type[io.ComfyNode]] | None = None) -> int:
    """Run one command and return its exit code; `nodes` are the pack's own if not given."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(message)s")
    logging.getLogger(__package__).setLevel(logging.INFO)
    command = {"run": _run, "validate": _validate, "nodes": _nodes}[options.command]
    try:
        catalog = from_nodes([*CORE_NODES, *(_pack_nodes() if nodes is None else nodes)])
        return command(options, catalog)
    except GraphError as err:
        for problem in err.problems:
            print(f"error: {problem}", file=sys.stderr)
        return BAD_INPUT
    except ImportError as err:
        print(f"error: the pack must be importable, got {err}; install its requirements.txt", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("Stopped at once; what was saved before is complete.", file=sys.stderr)
        return CANCELLED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rollout_trainer", description="Train LoRAs from a workflow file.")
    parser.set_defaults(verbose=False)
    commands = parser.add_subparsers(dest="command", required=True)
    graph = argparse.ArgumentParser(add_help=False)
    graph.add_argument(
        "graph", type=Path, help="workflow: JSON (saved or API format), or a PNG that carries one"
    )
    graph.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NODE.WIDGET=VALUE",
        help="change a widget; NODE is an id, a title or a class (repeatable)",
    )
    graph.add_argument("-v", "--verbose", action="store_true", help="log more, and show tracebacks")
    graph.add_argument("--device", help="where to compute, such as cuda:1 or cpu; default: the best one here")
    execute = commands.add_parser("run", parents=[graph], help="check a workflow and run it")
    execute.add_argument(
        "--out", type=Path, default=Path("out"), help="folder for all results (default: out)"
    )
    commands.add_parser("validate", parents=[graph], help="check a workflow and run nothing")
    listing = commands.add_parser("nodes", help="list nodes with their inputs, defaults and ranges")
    listing.add_argument("name", nargs="?", help="only nodes with this text in their name")
    return parser


def _pack_nodes() -> list[type[io.ComfyNode]]:
    from .nodes import RolloutTrainerExtension

    nodes: list[type[io.ComfyNode]] = asyncio.run(RolloutTrainerExtension().get_node_list())
    return nodes


def _run(options: argparse.Namespace, catalog: Catalog) -> int:
    host = _host(options, options.out)
    graph = _checked_graph(options, catalog, host, destination_problems(options.out))
    started, code = time.perf_counter(), 0
    try:
        with interruptible(host), logging_redirect_tqdm():
            run(graph, catalog, host, _announce)
    except Cancelled:
        code = CANCELLED
    except NodeError as err:
        print(f"error: {err}", file=sys.stderr)
        if options.verbose:
            traceback.print_exception(err.__cause__)
        return FAILED
    facts = {"run_seconds": time.perf_counter() - started, "peak_memory_mb": report.peak_memory_mb()}
    _finish(options, host, facts)
    return code


def _validate(options: argparse.Namespace, catalog: Catalog) -> int:
    graph = _checked_graph(options, catalog, _host(options, Path("out")), [])
    print(f"{options.graph} is valid: {len(graph.nodes)} nodes")
    return 0


def _host(options: argparse.Namespace, out: Path) -> StandaloneHost:
    if options.device is not None:
        try:
            torch.empty(0, device=options.device)
        except (RuntimeError, AssertionError) as err:
            raise GraphError(f"--device must be a device of this machine, got {options.device!r}") from err
    return StandaloneHost(out, folder=options.graph.parent, device=options.device)


def _checked_graph(
    options: argparse.Namespace, catalog: Catalog, host: StandaloneHost, found: Sequence[str]
) -> Graph:
    """Return the graph to run, with `--set` applied.

    Raises:
        GraphError: with everything that is wrong, the problems `found` elsewhere included.
    """
    graph, wrong = parse(read_file(options.graph), catalog), list(found)
    for setting in options.set:
        try:
            graph = override(graph, catalog, setting)
        except GraphError as err:
            wrong += err.problems
    with installed(host):
        wrong += problems(graph, catalog)
    if wrong:
        raise GraphError(*wrong)
    return graph


def _announce(number: int, count: int, title: str) -> None:
    print(f"[{number}/{count}] {title}", file=sys.stderr)


def _finish(options: argparse.Namespace, host: StandaloneHost, facts: Mapping[str, Any]) -> None:
    """Write the report and say what there is."""
    own = {"workflow": str(options.graph), "images": host.images, "cancelled": host.cancel_requested()}
    result = {**report.SECTIONS, **host.sections, **own, **facts}
    report.write(host.out / "report.json", result)
    if result["cancelled"]:
        saved = result.get("saved")
        print(f"Cancelled; state saved in {saved}" if saved else "Cancelled")
    for label, text in result.get("texts", {}).items():
        print(f"{label}: {text}")
    if result["lora"]:
        print(f"LoRA: {result['lora']}")
    if result["images"]:
        print(f"{len(result['images'])} images in {host.out}")
    print(f"Report: {host.out / 'report.json'}")


def _nodes(options: argparse.Namespace, catalog: Catalog) -> int:
    wanted = (options.name or "").lower()
    for spec in catalog.values():
        if wanted in spec.class_type.lower():
            print("\n".join(_describe(spec)))
    return 0


def _describe(spec: NodeSpec) -> list[str]:
    inputs = [f"  {item.name}: {_describe_input(item)}" for item in spec.inputs]
    outputs = [f"  -> {output.name}: {output.type}" for output in spec.outputs]
    return [
        f"{spec.class_type} ({spec.title})",
        *([spec.description] if spec.description else []),
        *inputs,
        *outputs,
    ]


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
