"""What tasks need of Ray's nodes, and how long a sweep waits for a node that was lost."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

PATIENCE_S = 60  # how long a sweep without any runnable task waits for a lost node
POLL_S = 2  # seconds between two looks at the finished tasks and the nodes
RAY_OPTIONS = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}  # built-in resources: name -> task option

Needs = dict[str, float]
"""The amount of each resource, by Ray's names, that a task needs of one node."""

Node = Mapping[str, float]
"""The resources of a node, whether busy or free."""

Lack = tuple[str, str]
"""What no node offers, and how to start a node that does: the cause and remedy of an error."""


@dataclass(frozen=True)
class Task:
    """A task submitted to Ray: the reference to its result, what it needs, and the results it depends on."""

    result: Any
    needs: Needs
    after: tuple[Any, ...] = ()


def live_nodes(ray: Any) -> list[Node]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def node_offers(node: Node, needs: Needs) -> bool:
    return all(node.get(name, 0) >= count for name, count in needs.items())


def any_node_offers(nodes: Iterable[Node], needs: Needs) -> bool:
    """Whether a single node has all of these resources."""
    return any(node_offers(node, needs) for node in nodes)


def task_options(needs: Needs) -> dict[str, Any]:
    """These needs as the options of a Ray task."""
    built_in = {option: needs[name] for name, option in RAY_OPTIONS.items() if name in needs}
    return {**built_in, "resources": {name: count for name, count in needs.items() if name not in RAY_OPTIONS}}


def lacking(needs: Needs, nodes: Sequence[Node]) -> Lack:
    """The needs that no node offers (or that no single node offers together), and how to start a node that does."""
    lone = {name: count for name, count in needs.items() if not any_node_offers(nodes, {name: count})}
    amounts = [_amount(name, count) for name, count in (lone or needs).items() if count]
    devices = {name: count for name, count in needs.items() if name not in RAY_OPTIONS}
    if devices:
        remedy = f"ray start --resources='{json.dumps(devices)}' on the machine with the device"
    else:
        remedy = "ray start on a machine that has them"
    return f"no node offers {', '.join(amounts)}", remedy


def _amount(name: str, count: float) -> str:
    if name == "memory":
        return f"{count / 1e9:,.1f} GB of memory"
    return name if name not in RAY_OPTIONS else f"{count:,.0f} {name}"


def finished(ray: Any, tasks: Iterable[Task]) -> Iterator[tuple[Any, Lack | None]]:
    """Yield each result reference once its task is done.

    When no task could run for PATIENCE_S, yield the remaining ones, each with what it lacks.
    """
    pending = {task.result: task for task in tasks}
    last_progress = monotonic()
    while pending:
        ready, _ = ray.wait(list(pending), timeout=POLL_S)
        for result in ready:
            del pending[result]
            yield result, None
        nodes = [] if ready else live_nodes(ray)
        if ready or any(_can_run(task, pending, nodes) for task in pending.values()):
            last_progress = monotonic()
        elif monotonic() - last_progress > PATIENCE_S:
            yield from _stuck(pending.values(), nodes)
            return


def _stuck(tasks: Iterable[Task], nodes: Sequence[Node]) -> Iterator[tuple[Any, Lack]]:
    """Yield each task's result with what it lacks, in order. A dependent task lacks what its dependency lacks."""
    lacks: dict[Any, Lack] = {}
    for task in tasks:
        inherited = [lacks[result] for result in task.after if result in lacks]
        lacks[task.result] = inherited[0] if inherited else lacking(task.needs, nodes)
        yield task.result, lacks[task.result]


def _can_run(task: Task, pending: Mapping[Any, Task], nodes: Sequence[Node]) -> bool:
    return not any(result in pending for result in task.after) and any_node_offers(nodes, task.needs)
