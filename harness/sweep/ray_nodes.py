"""What pieces of work need of Ray's nodes, and how long a sweep waits for a node that was lost."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

PATIENCE_S = 60  # of a sweep of which nothing can go on, until a node that was lost is back
LOOK_S = 2  # so often it looks which nodes are there
ASKED = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}  # what Ray counts itself, and the words of a task

Needs = dict[str, float]  # of one node, by Ray's names
Node = Mapping[str, float]  # what it offers, busy or not


@dataclass(frozen=True)
class Task:
    """A piece of work in Ray's hands: its answer to be, what it needs, and the answers that it is given."""

    answer: Any
    needs: Needs
    after: tuple[Any, ...] = ()


def there(ray: Any) -> list[Node]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def offers(node: Node, needs: Needs) -> bool:
    return all(node.get(name, 0) >= count for name, count in needs.items())


def offered(nodes: Iterable[Node], needs: Needs) -> bool:
    """By one of them, all of it."""
    return any(offers(node, needs) for node in nodes)


def options(needs: Needs) -> dict[str, Any]:
    """What a task tells Ray."""
    own = {word: needs[name] for name, word in ASKED.items() if name in needs}
    return {**own, "resources": {name: count for name, count in needs.items() if name not in ASKED}}


def missing(needs: Needs, nodes: Sequence[Node]) -> tuple[str, str]:
    """What no node offers, or none all of, and how to start one that does."""
    lone = {name: count for name, count in needs.items() if not offered(nodes, {name: count})}
    what = [_amount(name, count) for name, count in (lone or needs).items() if count]
    hung = {name: count for name, count in needs.items() if name not in ASKED}
    how = f"ray start --resources='{json.dumps(hung)}' where it hangs" if hung else "ray start where that is"
    return f"no node offers {', '.join(what)}", how


def _amount(name: str, count: float) -> str:
    if name == "memory":
        return f"{count / 1e9:,.1f} GB of memory"
    return name if name not in ASKED else f"{count:,.0f} {name}"


def answers(ray: Any, tasks: Iterable[Task]) -> Iterator[tuple[Any, tuple[str, str] | None]]:
    """Each answer once it is there; when nothing has gone on for PATIENCE_S, the rest, with what they lack."""
    ahead = {task.answer: task for task in tasks}
    went_on = monotonic()
    while ahead:
        ready, _ = ray.wait(list(ahead), timeout=LOOK_S)
        for answer in ready:
            del ahead[answer]
            yield answer, None
        nodes = [] if ready else there(ray)
        if ready or any(_can_go_on(task, ahead, nodes) for task in ahead.values()):
            went_on = monotonic()
        elif monotonic() - went_on > PATIENCE_S:
            yield from _lacking(ahead.values(), nodes)
            return


def _lacking(tasks: Iterable[Task], nodes: Sequence[Node]) -> Iterator[tuple[Any, tuple[str, str]]]:
    """In the order in which they were given: what waits for another lacks what that one does."""
    lacks: dict[Any, tuple[str, str]] = {}
    for task in tasks:
        before = [lacks[other] for other in task.after if other in lacks]
        lacks[task.answer] = before[0] if before else missing(task.needs, nodes)
        yield task.answer, lacks[task.answer]


def _can_go_on(task: Task, ahead: Mapping[Any, Task], nodes: Sequence[Node]) -> bool:
    return not any(other in ahead for other in task.after) and offered(nodes, task.needs)
