"""The Ray engine: runs cells on many nodes. Models are made and scored on any node, and timed on their device's node.

A physical device is a custom resource of the node it is attached to: `ray start --resources='{"device:cpu": 1}'`. Thus
only one task at a time uses it. All nodes must see the same runs folder. The work of a lost node starts again on
another one, from the last finished stage; work that only the lost node could do waits for it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.api import DeviceInfo
from harness.cell.lifecycle import STEPS
from harness.devices.attributes import torch_device
from harness.errors import EnvironmentFault, HarnessError
from harness.plugins import registry
from harness.sweep import ray_nodes, steps
from harness.sweep.ray_nodes import Lack, Needs, Node, Task
from harness.sweep.steps import CellState, RequestFields

if TYPE_CHECKING:
    from harness.sweep.sweep import SweepCell

RETRIES = 3  # of a task whose node or process was lost
RAISE_AGAIN_S = 1.0  # Python drops an exception raised inside a finaliser or a callback of the garbage collector
COPIED_ENVIRONMENT = ("HARNESS_", "HF_", "ONEDNN_", "OMP_")  # variables that influence results


def resource(device: str) -> str:
    """The name of the Ray resource that stands for a physical device."""
    return f"device:{device}"


class StepTimeout(BaseException):
    """A step ran out of time. It is not an `Exception`, so that no `except Exception` on the way catches it."""


def _run_step(
    fields: RequestFields,
    until: str,
    root: str,
    command: str,
    timeout_s: float | None,
    previous: CellState | None,
    _same_cut: Any,
) -> CellState:
    """Run a step with a timeout, unless the cell's previous step has already settled it.

    `_same_cut` is the result of another cell that makes the same cut: Ray starts this task only when it is there.
    """
    if previous is not None and previous["status"]:
        return previous
    timeouts: list[bool] = []

    def on_alarm(*_: Any) -> None:
        timeouts.append(True)
        raise StepTimeout

    previous_handler = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, timeout_s or 0, RAISE_AGAIN_S)
    try:
        return steps.step(fields, until, root, command, previous["started"] if previous else "")
    except BaseException:  # StepTimeout, or an error that it caused
        signal.setitimer(signal.ITIMER_REAL, 0)
        if not timeouts:
            raise
        return steps.fail(fields, root, "timeout", f"{until}: took longer than {timeout_s:g} s", command)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous_handler)


class RayEngine:
    """Runs jobs on a running Ray cluster, or on a temporary one that consists of this machine."""

    def __init__(self, address: str | None, timeout_s: float | None = None) -> None:
        # Under `uv run`, Ray would otherwise upload this folder and rebuild its environment on every node.
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        try:
            import ray
        except ImportError:
            raise EnvironmentFault("the engine ray needs the package ray", "pip install 'prune-harness[ray]'") from None
        self.ray, self.timeout_s = ray, timeout_s
        self.given_up: list[Needs] = []  # needs for which a job has already waited in vain
        variables = {name: value for name, value in os.environ.items() if name.startswith(COPIED_ENVIRONMENT)}
        variables.setdefault("OMP_NUM_THREADS", "1")  # Ray would set it to a task's cores, which changes results
        options: dict[str, Any] = {
            "runtime_env": {"env_vars": variables},
            "log_to_driver": False,
            "logging_level": "error",
        }
        address = address or os.environ.get("RAY_ADDRESS")
        try:
            if address:
                ray.init(address=address, **options)
            else:
                ray.init(include_dashboard=False, resources=_local_devices(), **options)
        except ConnectionError as error:
            raise EnvironmentFault(
                f"no Ray cluster at {address}: {error}", "ray start --head, or leave --address out"
            ) from None
        # One process per task, so that the memory of each is freed.
        self.remote_job: Any = ray.remote(max_calls=1, max_retries=RETRIES)(steps.run_job)
        self.remote_step: Any = ray.remote(max_calls=1, max_retries=RETRIES)(_run_step)

    def probe(self, device: str, runtime: str | None) -> DeviceInfo | None:
        """What a device reports on its node; None for an unregistered name, for which planning has a better error."""
        if device not in registry().specs["device"]:
            return None
        needs: Needs = {resource(device): 1}
        nodes = ray_nodes.live_nodes(self.ray)
        if not ray_nodes.any_node_offers(nodes, needs):
            return DeviceInfo(usable=False, reason=EnvironmentFault(*ray_nodes.lacking(needs, nodes)).line)
        try:
            return DeviceInfo(**self._run_remotely("probe", device, "cpu", {"device": device, "runtime": runtime}))
        except EnvironmentFault as error:
            return DeviceInfo(usable=False, reason=error.line)

    def run(self, job: str, **arguments: Any) -> Any:
        """The result of a job. It runs on the node of its device, unless it is light or records a failure."""
        if job == "fail" or steps.is_light(job, arguments):  # the node of a failed cell may be lost
            return steps.JOBS[job](**arguments)
        fields = arguments["fields"]
        spec = registry().get("device", fields["device"])
        device = registry().device(spec.name, fields["runtime"] or spec.runtimes[0])
        return self._run_remotely(job, spec.name, torch_device(device), arguments)

    def _run_remotely(self, job: str, node_of: str, torch_device: str, arguments: Mapping[str, Any]) -> Any:
        """The result of a job that runs on the node of the device `node_of`."""
        needs: Needs = {"CPU": 1, "GPU": int(torch_device != "cpu"), resource(node_of): 1}
        if needs in self.given_up:
            nodes = ray_nodes.live_nodes(self.ray)
            if not ray_nodes.any_node_offers(nodes, needs):
                raise EnvironmentFault(*ray_nodes.lacking(needs, nodes))
        remote_job = self.remote_job.options(**ray_nodes.task_options(needs))
        task = Task(remote_job.remote({"job": job, "arguments": arguments}), needs)
        ((result, lack),) = ray_nodes.finished(self.ray, [task])
        if lack:
            self.given_up.append(needs)
            raise EnvironmentFault(*lack)
        return self._get(result)

    def _get(self, result: Any) -> Any:
        """The result of a task; its own HarnessError is raised again as it was."""
        try:
            return self.ray.get(result)
        except self.ray.exceptions.RayTaskError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, HarnessError):
                raise cause from None
            last_line = str(error).strip().splitlines()[-1]
            raise HarnessError(last_line, "see its log in Ray's session folder") from None
        except self.ray.exceptions.RayError as error:
            first_line = str(error).strip().splitlines()[0]
            raise HarnessError(f"its process or node was lost {RETRIES + 1} times: {first_line}") from None

    def run_cells(
        self, cells: Sequence[SweepCell], root: str, command: str
    ) -> Iterator[tuple[SweepCell, str, CellState]]:
        """Submit all cells at once, and yield each cell's final state when it ends.

        Of the cells that share a cut, the first one makes it and the others start afterwards.
        """
        cell_of_result: dict[Any, SweepCell] = {}
        first_of_cut: dict[str, Any] = {}
        tasks: list[Task] = []
        nodes = ray_nodes.live_nodes(self.ray)
        for cell in cells:
            previous = None
            for until in steps.steps_of(cell.request):
                same_cut = first_of_cut.get(cell.cut) if previous is None else None
                needs = self._needs(cell, until, nodes)
                remote_step = self.remote_step.options(**ray_nodes.task_options(needs))
                result = remote_step.remote(cell.fields, until, root, command, self.timeout_s, previous, same_cut)
                after = tuple(dependency for dependency in (previous, same_cut) if dependency is not None)
                tasks.append(Task(result, needs, after))
                first_of_cut.setdefault(cell.cut, result)
                previous = result
            cell_of_result[previous] = cell
        for result, lack in ray_nodes.finished(self.ray, tasks):
            if result in cell_of_result:
                cell = cell_of_result[result]
                yield cell, "", self._final_state(cell, result, lack, root, command)

    def _final_state(self, cell: SweepCell, result: Any, lack: Lack | None, root: str, command: str) -> CellState:
        """The state of a cell after its last task. If that task was lost, its failure is recorded here."""
        if lack:
            return steps.waiting(EnvironmentFault(*lack))
        try:
            state: CellState = self._get(result)
        except HarnessError as error:
            return steps.fail(cell.fields, root, error.status, error.line, command)
        return state

    def _needs(self, cell: SweepCell, until: str, nodes: Sequence[Node]) -> Needs:
        """What a step of a cell needs: a CPU, a GPU if its models live on one, its device to time them, and memory.

        The memory is capped at that of the largest suitable node: a cell estimated as too large may still fit.
        """
        needs: Needs = {"CPU": 1, "GPU": int(cell.torch_device != "cpu")}
        if until == STEPS[1]:
            needs[resource(cell.request.device)] = 1
        largest = max((node.get("memory", 0) for node in nodes if ray_nodes.node_offers(node, needs)), default=0)
        return {**needs, "memory": int(min(cell.memory, largest))}

    def close(self) -> None:
        self.ray.shutdown()


def _local_devices() -> dict[str, float]:
    """One unit of a Ray resource for every device that this machine can use."""
    names = [
        name
        for name, spec in registry().specs["device"].items()
        if registry().device(name, spec.runtimes[0]).probe().usable
    ]
    return {resource(name): 1.0 for name in names}
