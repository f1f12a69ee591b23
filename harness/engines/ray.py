"""Many nodes, by Ray: models are made and scored where there is room, and timed where their device is, one at a time.

A physical device is a custom resource of the node that it hangs on: `ray start --resources='{"device:cpu": 1}'`. The
runs folder must be one that all nodes see. A lost node's work is begun again elsewhere, from the last finished stage.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from typing import Any

from harness.api import DeviceInfo
from harness.cell import STEPS
from harness.engines import steps
from harness.engines.steps import Words
from harness.errors import EnvironmentFault, HarnessError
from harness.plugins import registry

RETRIES = 3  # of a piece of work whose node or process was lost
HANDED_ON = ("HARNESS_", "HF_", "ONEDNN_", "OMP_")  # environment that decides what comes out


def resource(device: str) -> str:
    return f"device:{device}"


class Late(BaseException):
    """A step has had its time; nothing on the way may take it for a fault of its own."""


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
    signal.setitimer(signal.ITIMER_REAL, timeout_s or 0)
    try:
        return steps.step(words, until, root, command, before["started"] if before else "")
    except BaseException:  # Late, or what came of it on its way
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
        if resource(device) not in self.ray.cluster_resources():
            return DeviceInfo(usable=False, reason=self._missing(device))
        return DeviceInfo(**self._there(device, "cpu", "probe", device=device, runtime=runtime))

    def do(self, work: str, **given: Any) -> Any:
        if steps.light(work, given):
            return steps.WORK[work](**given)
        words = given["words"]
        known = registry().get("device", words["device"])
        place = getattr(registry().device(known.name, words["runtime"] or known.runtimes[0]), "place", "cpu")
        return self._there(known.name, place, work, **given)

    def _there(self, where: str, lies: str, work: str, **given: Any) -> Any:
        """A piece of work on the node that a device hangs on."""
        needs = {"num_cpus": 1, "num_gpus": int(lies != "cpu"), "resources": {resource(where): 1}}
        return self._got(self.work.options(**needs).remote({"work": work, "with": given}))

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
        for item in items:
            before = None
            for until in steps.steps_of(item.ask.request):
                after = made.get(item.cut) if before is None else None
                given = (item.words, until, root, command, self.timeout_s, before, after)
                before = self.step.options(**self._needs(item, until)).remote(*given)
                made.setdefault(item.cut, before)
            ends[before] = item
        while ends:
            ready, _ = self.ray.wait(list(ends), timeout=None)
            for end in ready:
                item = ends.pop(end)
                try:
                    answer = self._got(end)
                except HarnessError as error:
                    answer = steps.fail(item.words, root, error.status, error.line, command)
                yield item, "", answer

    def _needs(self, item: Any, until: str) -> dict[str, Any]:
        """Models are made and scored on any node, with a GPU where they lie on one; timed on their device alone."""
        needs: dict[str, Any] = {"num_cpus": 1, "num_gpus": int(item.place != "cpu")}
        return needs | ({"resources": {resource(item.ask.request.device): 1}} if until == STEPS[1] else {})

    def _missing(self, device: str) -> str:
        return f"no node offers {device} (ray start --resources='{{\"{device}\": 1}}' where it hangs)"

    def close(self) -> None:
        self.ray.shutdown()


def _here() -> dict[str, float]:
    """Every device that this machine can use, once."""
    known = registry()
    names = [
        name for name, spec in known.specs["device"].items() if known.device(name, spec.runtimes[0]).probe().usable
    ]
    return {resource(name): 1.0 for name in names}
