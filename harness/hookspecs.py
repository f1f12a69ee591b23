"""The hooks of harness. Read this page first.

A hook registers data and does no work: pluggy calls the hook of every plug-in. `target` names the class that does the
work; it is imported when it is run.

A plug-in is an installed distribution with one entry point in the group `harness` that names a module:

    [project.entry-points.harness]
    mine = "harness_mine"

Keep that module quick to import: no torch and no transformers at its top.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pluggy

from harness.api import ArchitectureSpec, DeviceSpec, EvaluatorSpec, Event, ModelCard, PrunerSpec, RecoverySpec

if TYPE_CHECKING:
    import click


hookspec = pluggy.HookspecMarker("harness")


@hookspec
def harness_register_pruners() -> Iterable[PrunerSpec]:  # type: ignore[empty-body]
    """Methods that decide what to cut. Returns a `PrunerSpec` for each; see docs/write-a-pruner.md.

    @hookimpl
    def harness_register_pruners():
        return [PrunerSpec(name="mine", target="harness_mine:Mine", summary="keeps the first units")]
    """


@hookspec
def harness_register_devices() -> Iterable[DeviceSpec]:  # type: ignore[empty-body]
    """Places where a model is timed. Returns a `DeviceSpec` for each; see docs/write-a-device.md.

    @hookimpl
    def harness_register_devices():
        return [DeviceSpec(name="board", target="harness_board:Board", summary="my board over SSH")]
    """


@hookspec
def harness_register_evaluators() -> Iterable[EvaluatorSpec]:  # type: ignore[empty-body]
    """Figures of quality, one score per document. Returns an `EvaluatorSpec` for each; see docs/write-an-evaluator.md.

    @hookimpl
    def harness_register_evaluators():
        return [EvaluatorSpec(name="poems", target="harness_poems:Poems", summary="perplexity on poems")]
    """


@hookspec
def harness_register_recoveries() -> Iterable[RecoverySpec]:  # type: ignore[empty-body]
    """Repairs after a cut, the same for every method. Returns a `RecoverySpec` for each.

    @hookimpl
    def harness_register_recoveries():
        return [RecoverySpec(name="heal", target="harness_heal:Heal", summary="least squares on the outputs")]
    """


@hookspec
def harness_register_models() -> Iterable[ModelCard]:  # type: ignore[empty-body]
    """Aliases for models, with their shapes, so that planning needs no download. Returns a `ModelCard` for each.

    `config` is the model's config.json as a dict; `source` is a hub id.

    @hookimpl
    def harness_register_models():
        return [ModelCard(name="my-1b", summary="ours", source="org/my-1b", config=SHAPES)]
    """


@hookspec
def harness_register_architectures() -> Iterable[ArchitectureSpec]:  # type: ignore[empty-body]
    """Kinds of network. Returns an `ArchitectureSpec` for each; its target is a `harness.api.Architecture`.

    @hookimpl
    def harness_register_architectures():
        return [ArchitectureSpec(name="mlp", target="harness_mlp:Mlp", summary="plain MLPs", model_types=("mlp",))]
    """


@hookspec
def harness_register_commands(cli: click.Group) -> None:
    """Adds commands to `harness`. `cli` is a click group. Commands of harness itself cannot be replaced.

    @hookimpl
    def harness_register_commands(cli):
        cli.add_command(my_command)
    """


@hookspec
def harness_event(event: Event) -> None:
    """Called for each event of a run. A plug-in that raises is reported and does not stop the run.

    `event` is a frozen `harness.api.Event`, whose fields may grow: `name` (cell-started, stage-started,
    stage-finished, cell-finished), `cell`, `stage`, `seconds`, `status`.

    @hookimpl
    def harness_event(event):
        print(event.name, event.cell, event.stage, event.seconds)
    """


@hookspec
def harness_environment(device: str) -> dict[str, Any]:  # type: ignore[empty-body]
    """Facts to write into a record's environment, under the plug-in's name.

    `device` is the name of the device that is timed. Returns a dict of plain JSON values.

    @hookimpl
    def harness_environment(device):
        return {"room_temperature_c": read_sensor()}
    """
