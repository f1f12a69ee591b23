"""`harness doctor`: show what this machine can do, and what is missing."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click

from harness import plugins
from harness.cli.json_output import print_json
from harness.errors import HarnessError


@click.command("doctor")
@click.argument("device", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print only JSON: an array of {what, name, ok, detail}.")
def command(device: str | None, as_json: bool) -> None:
    """Show what this machine can do, and what is missing. With DEVICE, exit code 3 if it is not usable.

    \b
    harness doctor
    harness doctor cpu
    """
    from harness.system import process

    process.prepare("bf16")  # so that the CPU's support of bf16 is tested
    rows = device_steps(device) if device else [*devices(), *text_sources(), *weights(), *environment()]
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


def device_steps(name: str) -> list[dict[str, Any]]:
    """The steps of reaching a remote device, up to one that fails and says what to do; one row for a local device."""
    device = plugins.registry().device(name)
    if not hasattr(device, "walk"):
        return devices([name])
    return [row("step", step.name, step.ok, step.detail) for step in device.walk()]


def devices(names: list[str] | None = None) -> list[dict[str, Any]]:
    """One row per device: these, or all that are registered."""
    rows = []
    for name in names or plugins.registry().specs["device"]:
        try:
            info = plugins.registry().device(name).probe()
        except HarnessError as error:
            if names:
                raise
            rows.append(row("device", name, False, error.cause))
            continue
        fingerprint = ", ".join(f"{key} {value}" for key, value in info.fingerprint.items() if value != "")
        detail = fingerprint if info.usable else info.reason
        rows.append(row("device", name, info.usable, "; ".join([detail, *info.notes])))
    return rows


def text_sources() -> list[dict[str, Any]]:
    from harness.evaluation import texts

    rows = []
    missing = "not on this machine; it comes from the hub, or set HARNESS_DATA to a folder that holds it"
    for name in texts.SOURCES:
        try:
            local = texts.local(name)
            rows.append(row("text", name, local is not None, local[0]["source"] if local else missing))
        except HarnessError as error:
            rows.append(row("text", name, False, error.cause))
    return rows


def weights() -> list[dict[str, Any]]:
    from harness.models.loading.weights import on_this_machine

    cards = plugins.registry().specs["model"].values()
    return [row("weights", card.name, *on_this_machine(card)) for card in cards]


def environment() -> list[dict[str, Any]]:
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
    rows = [
        writable,
        row("folder", "cache", True, str(cache_dir())),
        row("token", "HF_TOKEN", token, "set" if token else "not set; gated models need it"),
    ]
    for name in ("torch", "transformers", "datasets"):
        try:
            rows.append(row("package", name, True, version(name)))
        except PackageNotFoundError:
            rows.append(row("package", name, False, f"pip install {name}"))
    for origin, reason in plugins.registry().broken.items():
        rows.append(row("plug-in", origin.plugin, False, reason))
    return rows
