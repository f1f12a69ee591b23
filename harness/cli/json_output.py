"""Prints the JSON result of a command. With --json, only this goes to stdout, and everything else to stderr."""

from __future__ import annotations

import json
from typing import Any

import click

from harness.system import process


def print_json(value: Any, *, sort_keys: bool = False) -> None:
    click.echo(json.dumps(value, indent=2, sort_keys=sort_keys, default=str), file=process.answer_stream())
