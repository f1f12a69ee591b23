"""Carbon intensity of electricity: a figure that the user gives, or a country's from a table in the package codecarbon.

Only that table is read. codecarbon's code, which guesses location and power, is not run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from harness.api import Workload
from harness.errors import UsageError, one_line
from harness.records.schema import Co2, Energy
from harness.system import reading

TABLE = "codecarbon/data/private_infra/global_energy_mix.json"
GIVE_GRAMS = "give grams of CO2e per kWh: --grid 350"
MOST = 10_000  # grams per kWh; coal has about 1,000
JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class Grid:
    """An electricity grid: what the user asked for, and its carbon intensity."""

    requested: str
    grams_per_kwh: float
    source: str


def parse(value: str | float) -> Grid:
    """A grid from grams per kWh, or from a country's three-letter code."""
    text = str(value).strip()
    try:
        grams = float(text)
    except ValueError:
        return _country(text.upper())
    if not 0 <= grams <= MOST:  # which refuses NaN as well
        raise UsageError(f"grid {one_line(text, 60)!r} is not a carbon intensity from 0 to {MOST:,} g/kWh", GIVE_GRAMS)
    return Grid(text, grams, "stated by the user")


def _country(code: str) -> Grid:
    if not (len(code) == 3 and code.isalpha()):
        raise UsageError(
            f"grid {one_line(code, 60)!r} is neither grams per kWh nor a country's three-letter code",
            "give --grid 350 or --grid DEU",
        )
    version, table = _table()
    if code not in table:
        raise UsageError(
            f"codecarbon {version} has no country {code}", f"give its ISO 3166 code (DEU), or {GIVE_GRAMS}"
        )
    row = table[code]
    if not isinstance(row, dict) or not isinstance(row.get("carbon_intensity"), int | float):
        raise UsageError(f"codecarbon {version} has no carbon intensity for {code}", GIVE_GRAMS)
    where = " ".join(str(row[name]) for name in ("country_name", "year") if name in row)
    return Grid(code, float(row["carbon_intensity"]), f"codecarbon {version}" + (f", {where}" if where else ""))


def _table() -> tuple[str, Mapping[str, Mapping[str, Any]]]:
    try:
        package = distribution("codecarbon")
    except PackageNotFoundError:
        remedy = f"pip install 'prune-harness[co2]', or {GIVE_GRAMS}"
        raise UsageError(
            "codes of countries are looked up in the package codecarbon, which is not installed", remedy
        ) from None
    path = Path(str(package.locate_file(TABLE)))
    with reading.parsing(path, f"the table of codecarbon {package.version}", GIVE_GRAMS):
        return package.version, dict(reading.json_file(path))


def co2(grid: Grid, energy: Energy, workload: str) -> Co2:
    """Grams of CO2e per 1000 tokens. Without energy there are no figures, only the reason."""
    per_pass = grid.grams_per_kwh / JOULES_PER_KWH * 1000 / Workload.parse(workload).items
    return Co2(
        dense=None if energy.dense is None else energy.dense * per_pass,
        pruned=None if energy.pruned is None else energy.pruned * per_pass,
        reason=energy.reason,
        what=f"grams of CO2e per 1000 tokens, {workload}",
        grid=grid.requested,
        grams_per_kwh=grid.grams_per_kwh,
        source=grid.source,
    )
