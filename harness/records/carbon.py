"""What a kilowatt-hour weighs in CO2: a figure that the user states, or a country's from codecarbon's packaged table.

Only that table is read; codecarbon itself is not started, and guesses no place and no power.
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
STATE_IT = "state grams of CO2e per kWh: --grid 350"
MOST = 10_000  # grams per kWh; coal has about 1,000
JOULES = 3.6e6  # in a kilowatt-hour


@dataclass(frozen=True)
class Grid:
    asked: str
    grams_per_kwh: float
    source: str


def parse(asked: str | float) -> Grid:
    """Grams per kWh, or an ISO-3 code that the table knows."""
    text = str(asked).strip()
    try:
        grams = float(text)
    except ValueError:
        return _country(text.upper())
    if not 0 <= grams <= MOST:  # NaN is not, either
        raise UsageError(f"grid {one_line(text, 60)!r} is no carbon intensity from 0 to {MOST:,} g/kWh", STATE_IT)
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
            f"codecarbon {version} knows no country {code}", f"give its ISO 3166 code (DEU), or {STATE_IT}"
        )
    row = table[code]
    if not isinstance(row, dict) or not isinstance(row.get("carbon_intensity"), int | float):
        raise UsageError(f"codecarbon {version} has no carbon intensity for {code}", STATE_IT)
    where = " ".join(str(row[name]) for name in ("country_name", "year") if name in row)
    return Grid(code, float(row["carbon_intensity"]), f"codecarbon {version}" + (f", {where}" if where else ""))


def _table() -> tuple[str, Mapping[str, Mapping[str, Any]]]:
    try:
        found = distribution("codecarbon")
    except PackageNotFoundError:
        remedy = f"pip install 'prune-harness[co2]', or {STATE_IT}"
        raise UsageError(
            "codes of countries are looked up in the package codecarbon, which is missing", remedy
        ) from None
    path = Path(str(found.locate_file(TABLE)))
    with reading.parsing(path, f"the table of codecarbon {found.version}", STATE_IT):
        return found.version, dict(reading.json_file(path))


def co2(grid: Grid, energy: Energy, workload: str) -> Co2:
    """Grams per 1000 tokens of what the energy was read of; without energy no figure, but its reason."""
    per_pass = grid.grams_per_kwh / JOULES * 1000 / Workload.parse(workload).items
    return Co2(
        dense=None if energy.dense is None else energy.dense * per_pass,
        pruned=None if energy.pruned is None else energy.pruned * per_pass,
        reason=energy.reason,
        what=f"grams of CO2e per 1000 tokens, {workload}",
        grid=grid.asked,
        grams_per_kwh=grid.grams_per_kwh,
        source=grid.source,
    )
