"""Many nodes, by Ray: models are made and scored where there is room, and timed where their device is, one at a time.

A physical device is a custom resource of the node that it hangs on: `ray start --resources='{"device:cpu": 1}'`. The
runs folder must be one that all nodes see. A lost node's work is begun again elsewhere, from the last finished stage;
what only that node could do waits for it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from typing import Any

from harness.api import DeviceInfo
from harness.cell.lifecycle import STEPS
from harness.devices.attributes import torch_device
from harness.errors import EnvironmentFault, HarnessError
from harness.plugins import registry
from harness.sweep import ray_nodes, steps
from harness.sweep.ray_nodes import Needs, Task
from harness.sweep.steps import Words

RETRIES = 3  # of a piece of work whose node or process was lost
RAISE_AGAIN_S = 1.0  # Python drops an exception that is raised within a finaliser or a callback of the collector
HANDED_ON = ("HARNESS_", "HF_", "ONEDNN_", "OMP_")  # environment that decides what comes out


def resource(device: str) -> str:
    return f"device:{device}"


class Late(BaseException):
    """A step ran out of time. It is no `Exception`, so that no handler on the way takes it for its own."""


def _after(
    words: Words, until: str, root: str, command: str, timeout_s: float | None, before: Words | None, _other: Any
) -> Words:
    """A step, unless the one before it has ended the cell already. `_other` is the cell that makes the same cut."""
    if before is not None and before["status"]:
        return before
    over: list[bool] = []

    def late(*_: Any) -> None:
        over.append(True)
        raise Late

    known = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, timeout_s or 0, RAISE_AGAIN_S)
    try:
        return steps.step(words, until, root, command, before["started"] if before else "")
    except BaseException:  # Late, or an error that Late caused
        signal.setitimer(signal.ITIMER_REAL, 0)
        if not over:
            raise
        return steps.fail(words, root, "timeout", f"{until}: took longer than {timeout_s:g} s", command)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, known)


class Ray:
    """An engine on a cluster that is there, or on one of this machine alone."""

    def __init__(self, address: str | None, timeout_s: float | None = None) -> None:
        # started by `uv run`, Ray would send this folder and build its environment anew on every node
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        try:
            import ray
        except ImportError:
            raise EnvironmentFault(
                "the engine ray needs Ray, which is missing", "pip install 'prune-harness[ray]'"
            ) from None
        self.ray, self.timeout_s = ray, timeout_s
        self.given_up: list[Needs] = []  # waited for long enough already
        handed = {name: value for name, value in os.environ.items() if name.startswith(HANDED_ON)}
        handed.setdefault("OMP_NUM_THREADS", "1")  # by Ray it would follow the cores of a task, and results with it
        options: dict[str, Any] = {
            "runtime_env": {"env_vars": handed},
            "log_to_driver": False,
            "logging_level": "error",
        }
        known = address or os.environ.get("RAY_ADDRESS")
        try:
            if known:
                ray.init(address=known, **options)
            else:
                ray.init(include_dashboard=False, resources=_here(), **options)
        except ConnectionError as error:
            raise EnvironmentFault(
                f"no Ray cluster at {known}: {error}", "ray start --head, or leave --address out"
            ) from None
        # A process per piece of work: what a step leaves in memory is gone with it.
        self.work: Any = ray.remote(max_calls=1, max_retries=RETRIES)(steps.do)
        self.step: Any = ray.remote(max_calls=1, max_retries=RETRIES)(_after)

    def probe(self, device: str, runtime: str | None) -> DeviceInfo | None:
        """What a device says where it hangs; None where nobody knows its name, which planning tells better."""
        if device not in registry().specs["device"]:
            return None
        needs: Needs = {resource(device): 1}
        here = ray_nodes.there(self.ray)
        if not ray_nodes.offered(here, needs):
            return DeviceInfo(usable=False, reason=EnvironmentFault(*ray_nodes.missing(needs, here)).line)
        try:
            return DeviceInfo(**self._there(device, "cpu", "probe", device=device, runtime=runtime))
        except EnvironmentFault as error:
            return DeviceInfo(usable=False, reason=error.line)

    def do(self, work: str, **given: Any) -> Any:
        if work == "fail" or steps.light(work, given):  # the row of a cell whose node may be gone is written here
            return steps.WORK[work](**given)
        words = given["words"]
        known = registry().get("device", words["device"])
        place = torch_device(registry().device(known.name, words["runtime"] or known.runtimes[0]))
        return self._there(known.name, place, work, **given)

    def _there(self, where: str, lies: str, work: str, **given: Any) -> Any:
        """A piece of work on the node that a device hangs on."""
        needs: Needs = {"CPU": 1, "GPU": int(lies != "cpu"), resource(where): 1}
        if needs in self.given_up and not ray_nodes.offered(here := ray_nodes.there(self.ray), needs):
            raise EnvironmentFault(*ray_nodes.missing(needs, here))
        task = Task(self.work.options(**ray_nodes.options(needs)).remote({"work": work, "with": given}), needs)
        ((answer, lacks),) = ray_nodes.answers(self.ray, [task])
        if lacks:
            self.given_up.append(needs)
            raise EnvironmentFault(*lacks)
        return self._got(answer)

    def _got(self, answer: Any) -> Any:
        """What a piece of work answered, or its error as it was raised."""
        try:
            return self.ray.get(answer)
        except self.ray.exceptions.RayTaskError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, HarnessError):
                raise cause from None
            last = str(error).strip().splitlines()[-1]
            raise HarnessError(last, "its log is in Ray's session folder") from None
        except self.ray.exceptions.RayError as error:
            why = str(error).strip().splitlines()[0]
            raise HarnessError(f"its process or node was lost {RETRIES + 1} times: {why}") from None

    def cells(self, items: Sequence[Any], root: str, command: str) -> Iterator[tuple[Any, str, dict[str, Any]]]:
        """All cells at once; those of one cut one after the other, so that it is made once and nobody waits for it."""
        ends: dict[Any, Any] = {}
        made: dict[str, Any] = {}
        tasks: list[Task] = []
        here = ray_nodes.there(self.ray)
        for item in items:
            before = None
            for until in steps.steps_of(item.ask.request):
                other = made.get(item.cut) if before is None else None
                needs = self._needs(item, until, here)
                given = (item.words, until, root, command, self.timeout_s, before, other)
                answer = self.step.options(**ray_nodes.options(needs)).remote(*given)
                tasks.append(Task(answer, needs, tuple(one for one in (before, other) if one is not None)))
                made.setdefault(item.cut, answer)
                before = answer
            ends[before] = item
        for answer, lacks in ray_nodes.answers(self.ray, tasks):
            if (item := ends.get(answer)) is not None:
                yield item, "", self._ended(item, answer, lacks, root, command)

    def _ended(self, item: Any, answer: Any, lacks: tuple[str, str] | None, root: str, command: str) -> Words:
        """What became of a cell, whose row is written here if it could not be written there."""
        if lacks:
            return {"id": "", "status": "waits", "reason": EnvironmentFault(*lacks).line}
        try:
            found: Words = self._got(answer)
        except HarnessError as error:
            return steps.fail(item.words, root, error.status, error.line, command)
        return found

    def _needs(self, item: Any, until: str, here: Sequence[ray_nodes.Node]) -> Needs:
        """Models are made and scored on any node, with a GPU where they lie on one; timed on their device alone. Each
        asks for memory, at most for all of a node: what is reckoned too large for any may do by itself."""
        needs: Needs = {"CPU": 1, "GPU": int(item.place != "cpu")}
        needs |= {resource(item.ask.request.device): 1} if until == STEPS[1] else {}
        room = max((node.get("memory", 0) for node in here if ray_nodes.offers(node, needs)), default=0)
        return {**needs, "memory": int(min(item.memory, room))}

    def close(self) -> None:
        self.ray.shutdown()


def _here() -> dict[str, float]:
    """Every device that this machine can use, once."""
    known = registry()
    names = [
        name for name, spec in known.specs["device"].items() if known.device(name, spec.runtimes[0]).probe().usable
    ]
    return {resource(name): 1.0 for name in names}
