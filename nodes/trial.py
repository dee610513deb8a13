"""A trial of a workflow: what its Train LoRA node would train, in two to four ways, from the command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..host import io
from ..host.graph.catalog import Catalog, from_nodes
from ..host.graph.normal import Graph, GraphError
from ..host.graph.override import override
from ..host.graph.validate import problems
from ..host.standalone.host import StandaloneHost, installed
from ..host.standalone.run import run
from ..training.trial.trial import Drawing, Trial, carry_out
from .arms import shown
from .train import RolloutTrainLoRA, new_run


@dataclass(frozen=True)
class ArmSettings:
    """An arm as the command line names it: what the workflow is changed by."""

    name: str
    settings: tuple[str, ...]
    """``NODE.WIDGET=VALUE`` each."""

    @classmethod
    def parsed(cls, text: str) -> ArmSettings:
        """``NAME``, the workflow as it is, or ``NAME=NODE.WIDGET=VALUE;NODE.WIDGET=VALUE``."""
        name, _, rest = text.partition("=")
        return cls(name.strip(), tuple(part.strip() for part in rest.split(";") if part.strip()))


def trial_of(
    graph: Graph,
    nodes: Sequence[type[io.ComfyNode]],
    host: StandaloneHost,
    arms: Sequence[ArmSettings],
    **options: Any,
) -> Trial:
    """The trial of a workflow's one Train LoRA node; what stands before that node is run for every arm.

    Args:
        nodes: that a workflow may have.
        options: `seeds`, `equal` and `drawing` of the `Trial`.

    Raises:
        GraphError: the workflow cannot be tried, with everything that is wrong.
    """
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names) or not all(names):
        raise GraphError(f"--arms must have different names, got {', '.join(names)}")
    catalog, given = _asking(nodes)
    graphs = [_checked(graph, catalog, host, arm) for arm in arms]
    asked = [_started(own, catalog, given, host) for own in graphs]
    first = asked[0]
    for arm, own in zip(arms, asked, strict=True):
        for what, same in (("model", "source"), ("data", "data")):
            if own[same].fingerprint != first[same].fingerprint:
                raise GraphError(f"--arms must leave the {what} as it is, got another with {arm.name}")
        if own["adapter"] is not None:
            raise GraphError(
                "a trial must begin with fresh LoRAs, got a model with one; take Load LoRA File out"
            )
    return Trial(
        first["source"],
        first["data"],
        {arm.name: own["config"] for arm, own in zip(arms, asked, strict=True)},
        validation=first["validation"],
        **options,
    )


Given = list[dict[str, Any]]


def _asking(nodes: Sequence[type[io.ComfyNode]]) -> tuple[Catalog, Given]:
    """The nodes, but that Train LoRA trains nothing: what it is given is put into the list."""
    given: Given = []

    class Asked(RolloutTrainLoRA):
        @classmethod
        def define_schema(cls) -> io.Schema:
            schema = super().define_schema()
            schema.is_output_node = True
            return schema

        @classmethod
        def execute(
            cls, sample_prompts: Any = None, tensorboard: bool = False, save_lora_as: str = "", **inputs: Any
        ) -> io.NodeOutput:
            given.append(inputs)  # a trial draws its own pictures and curves, and its LoRAs are not kept
            return io.NodeOutput(None, None, "")

    return from_nodes([Asked if node is RolloutTrainLoRA else node for node in nodes]), given


def _checked(graph: Graph, catalog: Catalog, host: StandaloneHost, arm: ArmSettings) -> Graph:
    """The workflow of an arm up to its training node.

    Raises:
        GraphError: with everything that is wrong.
    """
    graph = _before_training(_changed(graph, catalog, arm), catalog)
    with installed(host):
        if wrong := problems(graph, catalog):
            raise GraphError(*wrong)
    return graph


def _started(graph: Graph, catalog: Catalog, given: Given, host: StandaloneHost) -> dict[str, Any]:
    """What the training node of an arm would start with."""
    with installed(host):
        run(graph, catalog, host)
        asked, *_ = new_run(**given.pop())
    return asked


def _changed(graph: Graph, catalog: Catalog, arm: ArmSettings) -> Graph:
    for setting in arm.settings:
        graph = override(graph, catalog, setting)
    return graph


def _before_training(graph: Graph, catalog: Catalog) -> Graph:
    """The one Train LoRA node and what it stands on."""
    training = [node.id for node in graph.nodes.values() if node.class_type == "RolloutTrainLoRA"]
    if len(training) != 1:
        raise GraphError(f"a trial needs a workflow with one Train LoRA node, got {len(training)}")
    wanted, found = list(training), set(training)
    while wanted:
        for _, link in graph.nodes[wanted.pop()].links():
            if link.node not in found:
                found.add(link.node)
                wanted.append(link.node)
    return Graph({id: node for id, node in graph.nodes.items() if id in found}, graph.workflow)


def conduct(trial: Trial, folder: Path, host: StandaloneHost, say: Callable[[str], None]) -> str:
    """Carry the trial out in `folder`, or go on with it; write table, plot and pictures there. The table as text."""
    total = sum(trial.config(arm, 0).steps for arm in trial.arms) * trial.seeds
    done = 0
    host.title = "Trial"
    bar = host.progress(total)

    def watch(arm: str, seed: int, report: Any) -> None:
        nonlocal done
        done = min(done + 1, total)
        bar.update(done, f"{arm}, seed {seed}: step {report.step}, loss {report.loss:.4f}")

    table = carry_out(trial, folder, watch, say)
    text, plot, grid = shown(trial, table, folder)
    Image.fromarray(plot).save(folder / "trial.png")
    Image.fromarray(grid).save(folder / "pictures.png")
    return text


def drawing(cfgs: Sequence[float] | None) -> Drawing:
    """How pictures are drawn, at these guidance scales."""
    return Drawing(cfgs=tuple(cfgs)) if cfgs else Drawing()
