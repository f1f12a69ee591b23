"""`harness doctor`: what this machine can do."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click

from harness import plugins
from harness.cli.answer import print_json
from harness.errors import HarnessError


@click.command("doctor")
@click.argument("device", required=False)
@click.option("--json", "as_json", is_flag=True, help="An array of what, name, ok, detail.")
def command(device: str | None, as_json: bool) -> None:
    """What this machine can do, and what is missing. Exit 3 if the named device is not usable.

    \b
    harness doctor
    harness doctor cpu
    """
    from harness.system import process

    process.prepare("bf16")  # so that the CPU is asked what it does with it
    rows = walk(device) if device else [*devices(), *text_sources(), *weights(), *surroundings()]
    if as_json:
        print_json(rows)
    else:
        width = max(len(row["name"]) for row in rows)
        for row in rows:
            mark = click.style("ok     ", fg="green") if row["ok"] else click.style("missing", fg="yellow")
            click.echo(f"{mark} {row['what']:9} {row['name']:{width}}  {row['detail']}")
    if device and not all(row["ok"] for row in rows):
        click.get_current_context().exit(3)


def row(what: str, name: str, ok: bool, detail: str) -> dict[str, Any]:
    return {"what": what, "name": name, "ok": ok, "detail": detail}


def walk(name: str) -> list[dict[str, Any]]:
    """A device step by step, where it is one to walk to; the first that fails says what to do."""
    device = plugins.registry().device(name)
    if not hasattr(device, "walk"):
        return devices([name])
    return [row("step", step.name, step.ok, step.detail) for step in device.walk()]


def devices(names: list[str] | None = None) -> list[dict[str, Any]]:
    found = []
    for name in names or plugins.registry().specs["device"]:
        try:
            info = plugins.registry().device(name).probe()
            detail = (
                ", ".join(f"{k} {v}" for k, v in info.fingerprint.items() if v != "") if info.usable else info.reason
            )
            found.append(row("device", name, info.usable, "; ".join([detail, *info.notes])))
        except HarnessError as error:
            if names:
                raise
            found.append(row("device", name, False, error.cause))
    return found


def text_sources() -> list[dict[str, Any]]:
    from harness.evaluation import texts

    found = []
    for name in texts.SOURCES:
        try:
            known = texts.local(name)
            detail = known[0]["source"] if known else "not here; from the hub, or set HARNESS_DATA to a folder with it"
            found.append(row("text", name, known is not None, detail))
        except HarnessError as error:
            found.append(row("text", name, False, error.cause))
    return found


def weights() -> list[dict[str, Any]]:
    from harness.models.loading.weights import on_this_machine

    cards = plugins.registry().specs["model"].values()
    return [row("weights", card.name, *on_this_machine(card)) for card in cards]


def surroundings() -> list[dict[str, Any]]:
    from harness.errors import EnvironmentFault
    from harness.models.loading.weights import free_space
    from harness.records.store import Store
    from harness.system.host import cache_dir

    store = Store()
    try:
        store.prepare()
        writable = row("folder", "runs", True, f"{store.root}, {free_space(store.root) / 1e9:.1f} GB free")
    except EnvironmentFault as error:
        writable = row("folder", "runs", False, f"{error.cause}; {error.remedy}")
    token = any(os.environ.get(name) for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"))
    found = [
        writable,
        row("folder", "cache", True, str(cache_dir())),
        row("token", "HF_TOKEN", token, "set" if token else "not set; gated models need it"),
    ]
    for name in ("torch", "transformers", "datasets"):
        try:
            found.append(row("package", name, True, version(name)))
        except PackageNotFoundError:
            found.append(row("package", name, False, f"pip install {name}"))
    for origin, reason in plugins.registry().broken.items():
        found.append(row("plug-in", origin.plugin, False, reason))
    return found
