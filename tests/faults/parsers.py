"""Calls of all parsers of what came from outside. `catalogue` holds the inputs that each begins with."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from harness.errors import HarnessError
from harness.records.store import Store

from . import bases, mutations
from .bases import SOUND, Files

Parse = Callable[[Path, Path], object]  # folder and input -> whether it was used; HarnessError where it was refused
RAW = {
    ".json": mutations.RAW_JSON,
    ".jsonl": mutations.RAW_JSON,
    ".yaml": [*mutations.RAW_JSON, *mutations.RAW_YAML],
}


@dataclass(frozen=True)
class Parser:
    """`files` are the well-formed inputs, of which each is tried alone. `beside` lies in the folder with all of them.

    `pack` makes the files of a value, for those that carry a digest of their own words or are named by it.
    """

    name: str
    share: int  # of 1,000 inputs
    parse: Parse
    files: Files
    beside: Files = field(default_factory=dict)
    pack: Callable[[str, Any], Files] | None = None
    values: Mapping[str, bytes] = field(default_factory=dict)  # JSON of what is mutated as a value
    is_file: bool = True  # of a user's, which a message names; else an argument or what a program printed

    def input(self, seed: int) -> Files:
        """The files of one input, the parser's own first; the same for the same seed."""
        random = Random(f"{self.name}-{seed}")
        file = random.choice(sorted(self.files))
        content, raw = self.files[file], RAW.get(Path(file).suffix, ())
        if self.pack is not None:
            return self.pack(file, mutations.of_value(random, self.values[file], kinds=0.8))
        if file in self.values and random.random() < 0.7:
            return {file: mutations.text_of(random, mutations.of_value(random, self.values[file], raw), raw)}
        if file.endswith(".jsonl") and random.random() < 0.7:
            lines = content.splitlines(True)
            at = random.randrange(len(lines))
            lines[at] = mutations.text_of(random, mutations.of_value(random, lines[at], raw), raw) + b"\n"
            return {file: b"".join(lines)}
        return {file: mutations.of_bytes(random, content, list(self.files.values()))}

    def examples(self) -> Iterator[Files]:
        """Each input that this begins with."""
        for file, content in self.files.items():
            yield self.pack(file, json.loads(self.values[file])) if self.pack is not None else {file: content}


def require(holds: object, what: str) -> None:
    if not holds:
        raise AssertionError(what)


def command(name: str, *arguments: str) -> str:
    """What `harness NAME ARGUMENTS` prints; the store is HARNESS_RUNS, the folder of the input."""
    import importlib

    from click.testing import CliRunner

    verb = importlib.import_module(f"harness.cli.{name}").command
    result = CliRunner().invoke(verb, list(arguments), catch_exceptions=False, standalone_mode=False)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


# --- the store ---


def record(folder: Path, path: Path) -> object:
    return Store(folder).record(path.stem) is not None


def records(folder: Path, path: Path) -> object:
    cells = {one.id for one in Store(folder).records()}
    require(SOUND in cells, "the sound record is not answered")
    return path.stem in cells


def entry(folder: Path, path: Path) -> object:
    from harness.leaderboard.entries import Entry

    one = Entry(path, folder / "samples")
    return all(one.documents(score) is not None for score in one.record.scores.values())


def stage(folder: Path, path: Path) -> object:
    store = Store(folder)
    value = store.stage("cell", path.stem)
    store.components("cell")
    return value is not None


def status(folder: Path, path: Path) -> object:
    out = command("status")
    require(SOUND[:12] in out, "the sound record has no row")
    return path.is_file() and command("status", "--json")


def status_why(folder: Path, path: Path) -> object:
    require(SOUND[:12] in command("status", "--why"), "the sound record has no row")
    return path.is_file()


def side_file(folder: Path, path: Path) -> object:
    from harness.records.sample_files import check_side_file, load_side_file

    used = Store(folder).read_side_file(path.name) is not None
    if path.is_file():
        check_side_file(path)
        load_side_file(path)
    return used


# --- records that were sealed again ---


def printed_page(folder: Path, path: Path) -> object:
    out = command("leaderboard")
    require("magnitude" in out, "the sound record is on no page")
    return path.is_file()


def html(folder: Path, path: Path) -> object:
    command("leaderboard", "--html", str(folder / "page.html"))
    require("magnitude" in (folder / "page.html").read_text(encoding="utf-8"), "the sound record is on no page")
    return path.is_file()


def tree(folder: Path, path: Path) -> object:
    command("leaderboard", str(folder))
    command("leaderboard", str(folder), "--check")
    return True


def validate(folder: Path, path: Path) -> object:
    verdicts = json.loads(command("validate", "--json"))
    require(len(verdicts) == 2, "a record has no verdict")
    return not any(verdict["faults"] for verdict in verdicts)


def compare(folder: Path, path: Path) -> object:
    command("compare", SOUND, str(path))
    json.loads(command("compare", SOUND, str(path), "--json"))
    return True


def publish(folder: Path, path: Path) -> object:
    command("publish", "set", "--to", str(folder / "boards"))
    return path.is_file()


def side_values(folder: Path, path: Path) -> object:
    """A side file under its right name, behind a record that names it."""
    printed_page(folder, path)
    return validate(folder, path)


# --- what a user writes ---


def suite(folder: Path, path: Path) -> object:
    from harness.sweep.suite import cell_requests, load_suite

    return cell_requests(load_suite(path))


def device_file(folder: Path, path: Path) -> object:
    from harness.devices.remote.device_file import load_target

    target = load_target(path.stem, "{transport: ssh, host: board.local}")
    return target if target.transport == "ssh" else target.connect()


def settings(folder: Path, path: Path) -> object:
    """`--set` values, and those of a suite, which may have any type."""
    from harness import plugins, resolve

    methods = json.loads(path.read_bytes())
    for name, given in methods.items() if isinstance(methods, dict) else ():
        spec = plugins.registry().get("pruner", name)
        if isinstance(given, dict):
            resolve.resolve_settings(f"pruner {name}", spec.parameters, "quick", given)
    return True


def names(folder: Path, path: Path) -> object:
    """Evaluators and a recovery, as a command line gives them."""
    from harness import resolve

    evaluators, recovery = [*_argument(path).split("\n"), ""][:2]
    resolve.resolve_recovery(recovery, "quick", "c4")
    return resolve.resolve_evaluators(evaluators.split(","), "quick")


def _argument(path: Path) -> str:
    return path.read_bytes().decode(errors="surrogateescape")


def workload(folder: Path, path: Path) -> object:
    from harness.api import Workload

    return str(Workload.parse(_argument(path)))


def budget(folder: Path, path: Path) -> object:
    from harness.api import Budget

    kind, _, text = _argument(path).partition(" ")
    return str(Budget.latency(text) if kind == "latency" else Budget.ratio(text))


def grid(folder: Path, path: Path) -> object:
    from harness.records.carbon import parse

    return parse(_argument(path))


def text_rows(folder: Path, path: Path) -> object:
    from harness.evaluation import texts

    text = texts.read("ptb" if path.suffix == ".txt" else "c4")
    return text.join.join(text.documents) is not None


def task_rows(folder: Path, path: Path) -> object:
    from harness_lm_eval.rows import Source, find

    return find(Source("piqa", "none", "none"), fetch=False).read({"validation": 2})


def reported(folder: Path, path: Path) -> object:
    from harness.leaderboard import markdown_page, reported

    rows = reported.read(folder)
    return markdown_page.reported_page(rows) if rows else True


# --- cost tables and saved models ---


def table(folder: Path, path: Path) -> object:
    from rich.console import Console

    from harness.cli.profile import print_table
    from harness.latency.cost_table import table_store

    cost_table = table_store.load_table(path)
    if cost_table.validation is not None:
        print_table(cost_table, path, Console(file=io.StringIO()))
    return table_store.TableStore(Store(folder)).put(cost_table, again=True)


def shelved_table(folder: Path, path: Path) -> object:
    from harness import plugins
    from harness.api import Workload
    from harness.latency.cost_table.cost_model import CostModel
    from harness.latency.cost_table.table_store import TableStore
    from harness.models.architectures.lookup import anatomy_of

    pristine = json.loads(bases.table())
    anatomy = anatomy_of(plugins.registry().get("model", "tiny").config)
    place = (pristine["device"], pristine["runtime"], pristine["dtype"], Workload.parse(pristine["workload"]))
    cost_table = TableStore(Store(folder)).find(anatomy, *place)
    if cost_table is None:
        return False
    cost = CostModel(cost_table, anatomy)
    return cost.floor <= cost.dense and (cost_table.predictor is None or cost.time({"hidden": 48}))


def config(folder: Path, path: Path) -> object:
    from harness.models.architectures.decoder import config_of
    from harness.models.architectures.decoder_families import sliding_window
    from harness.models.architectures.lookup import anatomy_of
    from harness.models.saved.contents import read_config

    anatomy = anatomy_of(read_config(folder))
    config_of(anatomy, anatomy.full())
    config_of(anatomy, {site: (units + 1) // 2 for site, units in anatomy.full().items()})
    return [sliding_window(anatomy.config, site.layer or 0) for site in anatomy.blocks()]


def plan(folder: Path, path: Path) -> object:
    """`harness run --model FOLDER --dry-run`."""
    from harness.cell import planning
    from harness.cell.plan import Attempt
    from harness.cell.request import Request

    request = Request(
        pruner="magnitude", model=str(folder), ratio=0.3, device="null", evaluators=("footprint",), calibration="c4"
    )
    cell = planning.make_plan(request, fetch=False)
    return cell.work_flops() if cell.obstacle is None else cell.cell_id(Attempt())


def load(folder: Path, path: Path) -> object:
    from harness.models.saved import folders

    return folders.read(folder)


def cut(folder: Path, path: Path) -> object:
    from harness.models.saved import folders

    return folders.read_cut(folder).shape is not None


def weight_files(folder: Path, path: Path) -> object:
    from harness.models.saved import folders

    return folders.weights(folder)


def tokenizer(folder: Path, path: Path) -> object:
    from harness.models.saved import folders

    return folders.tokenizer(folder)


def state(folder: Path, path: Path) -> object:
    from harness.models.saved import states

    return states.read(folder) is not None


def gguf_header(folder: Path, path: Path) -> object:
    """The look at a file's header that comes before any library opens it."""
    from harness.models.architectures.lookup import check_config
    from harness.models.loading.gguf_header import Header
    from harness.system import reading

    with reading.parsing(path, "a readable GGUF file"):
        header = Header(path)
    check_config(header.config(), str(path))
    return header.family


def gguf(folder: Path, path: Path) -> object:
    from harness.models.loading import cards

    return cards.card(str(path))


def notes(folder: Path, path: Path) -> object:
    """Notes of earlier runs in the cache; what cannot be read there is worked out again."""
    from harness.api import ModelCard
    from harness.models.loading import weights
    from harness.system import host

    require(isinstance(host.read_cache_notes("amx.json"), dict), "the notes are not plain pairs")
    return weights.from_folder(ModelCard(name="m", summary="", config={}, source=str(folder), loader=""))


# --- other machines ---


class Program:
    """An agent that answers with prepared lines."""

    machine = "board"

    def __init__(self, lines: Sequence[str]) -> None:
        self.lines, self.nonce = list(lines), ""

    def send(self, line: str) -> None:
        self.nonce = json.loads(line)["nonce"]

    def receive(self, timeout_s: float) -> str | None:
        return self.lines.pop(0).replace("NONCE", self.nonce) if self.lines else None

    def result(self) -> Any:
        from harness.devices.remote.transport import CommandResult

        return CommandResult(1, "", "")

    def close(self) -> None: ...


def agent(folder: Path, path: Path) -> object:
    """A reply, and what a device makes of it."""
    from harness.api import TimingPlan
    from harness.devices.remote import agent as program
    from harness.devices.remote import ort_device
    from harness.devices.remote.agent_client import AgentProcess
    from harness.devices.remote.device import Handle
    from harness.devices.remote.device_file import Target

    reply = path.read_bytes().decode(errors="replace")
    lines = (program.ANSWER + reply.replace("\n", " ") if path.suffix == ".json" else reply).splitlines(True)

    class Board(ort_device.OnnxRuntime):
        name = "orin-cpu"
        target = Target(transport="local")
        machine = "board"

        class Agent:
            def request(self, do: str, timeout_s: float = 120, **arguments: Any) -> Any:
                return AgentProcess(Program(lines), "python3").request(do, timeout_s, **arguments)

        agent = Agent()

        def steps(self) -> Any:
            yield from self.more_steps()
            yield "machine", self._machine
            yield "temperature", self._temperature

    board = Board()
    if path.stem == "probe":
        return board.probe().usable
    if path.stem == "open":
        ort_device.check_no_fallback(board.agent.request("open"), "board")
        return True
    return board.measure(Handle("m", "m.onnx", process=AgentProcess(Program(lines), "python3")), TimingPlan(1, 3, 0.0))


class Line:
    """A transport whose every command prints the input."""

    machine = "board"

    def __init__(self, text: str) -> None:
        from harness.devices.remote.shells import Posix

        self.text, self.shell = text, Posix()

    def run(self, words: Sequence[str], timeout_s: float = 60) -> Any:
        from harness.devices.remote.shells import split_exit_code
        from harness.devices.remote.transport import CommandResult

        split_exit_code(self.text)
        return CommandResult(0, self.text, "")


def shell(folder: Path, path: Path) -> object:
    """What commands of other machines print: properties, temperatures, free space, hashes."""
    from harness.devices.remote import android
    from harness.devices.remote.folder import Folder

    line = Line(_printed(path))
    android.describe(android.probe(line))
    android.check_program(line, "/data/program", "phone")
    folder = Folder(line, "/data")
    folder._path = "/data/harness-x"
    return folder.free() is not None or folder.hashes(["a"])


def _printed(path: Path) -> str:
    return path.read_bytes().decode(errors="replace")


def trtexec(folder: Path, path: Path) -> object:
    from harness.devices.remote.programs import trtexec as program

    text = _printed(path)
    return program.samples(text) if path.suffix == ".json" else program.parse_output(text, 0)


def perf_test(folder: Path, path: Path) -> object:
    from harness.devices.remote.programs import perf_test as program

    text = _printed(path)
    return program.samples(text) if path.suffix == ".csv" else program.parse_output(text, 0)


def benchmark_model(folder: Path, path: Path) -> object:
    from harness.devices.remote.programs import benchmark_model as program

    text = _printed(path)
    program.fallback(text)
    return program.parse_output(text, 0)


def net_run(folder: Path, path: Path) -> object:
    from harness.devices.remote.programs import net_run as program

    text = _printed(path)
    with suppress(HarnessError):
        program.check_finished(text, 0)
    return program.parse_output(text)


def environment(folder: Path) -> dict[str, str]:
    """Where the parsers look for files of a user's."""
    names = ("HARNESS_RUNS", "HARNESS_CACHE", "HARNESS_DATA", "HARNESS_DEVICES")
    return {**dict.fromkeys(names, str(folder)), "HF_HUB_OFFLINE": "1", "COLUMNS": "110"}
