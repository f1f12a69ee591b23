"""Fuzz of all parsers, in pieces; a second run goes on where the first one stopped.

    python -m tests.faults.fuzz --parser all --start 0 --count 100000 --jobs 2 --out FOLDER
    python -m tests.faults.fuzz --summary FOLDER
    python -m tests.faults.fuzz --parser NAME --show SEED

One parser and one seed are one input. An input may be answered or refused with a `HarnessError`; a record may be set
aside with a notice. Anything else is a failure: another exception, a changed file outside the input's folder, more
than a second of CPU time, a message that names no file, the end of the process. The memory of a process is
limited; what runs into the limit is a failure where it is not refused.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gc
import json
import mmap
import os
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import HarnessError, Unsupported

from .bases import TIME_NS
from .catalogue import catalogue
from .parsers import Parser, environment

PIECE = 2000  # inputs
SLOW_S = 1.0  # CPU seconds of one input
STOP_S = 4  # CPU seconds after which an input's process is ended
MEMORY = 2 << 30  # bytes that a process may add to those of the libraries
GROWTH = 256 << 20  # bytes that one input may add to the peak
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Outcome:
    """What became of one input: accepted, refused, or the name of a failure with its cause."""

    kind: str
    cause: str = ""
    seconds: float = 0.0
    growth: int = 0  # bytes that it added to the peak of the process


class Sandbox:
    """A folder for inputs of one parser, beside a tree that nothing may change."""

    def __init__(self, parser: Parser, root: Path) -> None:
        self.parser, self.root, self.folder = parser, root, root / "input"
        canary = {"canary/notes.txt": b"a note", "canary/folder/only-copy.txt": b"the only copy", "README.md": b"mine"}
        for name, content in canary.items():
            _put(root / name, content)
        (root / "work").mkdir()
        self.folder.mkdir()
        for name, content in parser.beside.items():
            _put(self.folder / name, content)
        self.initial = _tree(self.folder)
        self.beside = [str(root), *(str(root / name) for name in (*canary, "canary", "canary/folder", "work"))]
        self.outside, self.peak = self._outside(), _peak()

    def _outside(self) -> list[tuple[int, int, int]]:
        """The state of the tree: a folder's time changes with the names in it."""
        states = map(os.lstat, self.beside)
        return [(state.st_mode, state.st_size, state.st_mtime_ns) for state in states]

    @contextlib.contextmanager
    def enter(self) -> Iterator[None]:
        """With the folder as every place where a user's files are looked for."""
        before, home = dict(os.environ), Path.cwd()
        os.environ.update(environment(self.folder))
        os.chdir(self.root / "work")
        try:
            yield
        finally:
            os.chdir(home)
            os.environ.clear()
            os.environ.update(before)

    def run(self, files: dict[str, bytes]) -> Outcome:
        """The outcome of one input; the folder is as before when it ends."""
        first = self.folder / next(iter(files))
        for name, content in files.items():
            _put(self.folder / name, content)
        start = time.process_time()
        try:
            kind, cause = ("accepted" if self.parser.parse(self.folder, first) else "refused"), ""
        except HarnessError as error:
            kind, cause = "refused", self._unclear(error, first)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # panics of Rust libraries are no Exceptions
            kind, cause = "uncaught", where(error)
        seconds = time.process_time() - start
        before, self.peak = self.peak, _peak()
        growth = self.peak - before
        if kind == "refused" and cause:
            kind = "unnamed"
        elif kind in ("accepted", "refused") and seconds > SLOW_S:
            kind, cause = "slow", f"more than {SLOW_S:g} s"
        elif kind in ("accepted", "refused") and growth > GROWTH:
            kind, cause = "memory", f"more than {GROWTH >> 20} MB"
        self._restore(files)
        if (outside := self._outside()) != self.outside:
            self.outside, kind, cause = outside, "touched", "a file outside the input's folder"
        return Outcome(kind, cause, seconds, growth)

    def _unclear(self, error: HarnessError, first: Path) -> str:
        """What a message lacks: text, or the name of the file that it is about."""
        text = str(error.cause).strip()
        of_file = self.parser.is_file and not isinstance(error, Unsupported)  # whose file is as it should be
        if not text or (of_file and not any(name in text for name in (first.name, str(self.folder)))):
            return f"no file is named at {place(error)}"
        return ""

    def _restore(self, files: Iterable[str]) -> None:
        """The folder as it was before these files were put into it."""
        now = _tree(self.folder)
        for name in sorted(now.keys() - self.initial.keys(), reverse=True):
            path = self.folder / name
            path.rmdir() if now[name] else path.unlink()
        for name in {*files, *(self.parser.beside.keys() - now.keys())} & self.parser.beside.keys():
            _put(self.folder / name, self.parser.beside[name])


def _put(path: Path, content: bytes) -> None:
    """A file with a time of change that is always the same."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        os.write(descriptor, content)
        os.utime(descriptor, ns=(TIME_NS, TIME_NS))
    finally:
        os.close(descriptor)


def _tree(folder: Path) -> dict[str, bool]:
    """What lies below a folder, by its path, and whether it is a folder."""
    tree: dict[str, bool] = {}
    todo = [(str(folder), "")]
    while todo:
        path, prefix = todo.pop()
        with os.scandir(path) as entries:
            for entry in entries:
                name = prefix + entry.name
                tree[name] = entry.is_dir(follow_symlinks=False)
                if tree[name]:
                    todo.append((entry.path, f"{name}/"))
    return tree


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def place(error: BaseException) -> str:
    """The innermost line of ours that an exception came through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"{os.sep}harness" in frame.filename and "site-packages" not in frame.filename]
    if not (ours or frames):
        return "nowhere"
    frame = (ours or frames)[-1]
    name = os.path.relpath(frame.filename, ROOT) if frame.filename.startswith(str(ROOT)) else frame.filename
    return f"{name}:{frame.lineno} {frame.name}"


def where(error: BaseException) -> str:
    """An uncaught exception and the line of ours it came through: what makes two failures one."""
    return f"{type(error).__name__} at {place(error)}"


# --- pieces ---


def piece(parser: Parser, start: int, count: int, root: Path, progress: mmap.mmap) -> dict[str, Any]:
    """The outcomes of a range of seeds, in this process. `progress` says which seed is at work.

    The process is ended where an input takes too long.
    """
    counts: Counter[str] = Counter()
    failures: dict[str, dict[str, Any]] = {}
    slowest, largest = (0.0, start), (0, start)
    base, began = _peak(), time.process_time()
    sandbox = Sandbox(parser, root)
    with sandbox.enter():
        for seed in range(start, start + count):
            progress[:8] = struct.pack("<q", seed)
            signal.setitimer(signal.ITIMER_PROF, STOP_S)
            outcome = sandbox.run(parser.input(seed))
            counts[outcome.kind] += 1
            slowest = max(slowest, (outcome.seconds, seed))
            largest = max(largest, (outcome.growth, seed))
            if outcome.cause:
                failure = failures.setdefault(f"{outcome.kind}: {outcome.cause}", {"count": 0, "seed": seed})
                failure["count"] += 1
    signal.setitimer(signal.ITIMER_PROF, 0)
    return {
        "counts": dict(counts),
        "failures": failures,
        "cpu_s": round(time.process_time() - began, 2),
        "slowest_s": round(slowest[0], 4),
        "slowest_seed": slowest[1],
        "peak_mb": _peak() >> 20,
        "libraries_mb": base >> 20,
        "largest_mb": largest[0] >> 20,
        "largest_seed": largest[1],
    }


def _memory_folder() -> str | None:
    """Where files are never written to a disk, if there is such a place."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class Child:
    """A piece in a process of its own, whose end is one failure of one input."""

    def __init__(self, parser: Parser, start: int, count: int) -> None:
        self.parser, self.start, self.count = parser, start, count
        self.progress = mmap.mmap(-1, 8)
        self.progress[:8] = struct.pack("<q", start)
        self.root = Path(tempfile.mkdtemp(prefix="fuzz-", dir=_memory_folder()))
        reader, writer = os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            os.close(reader)
            self._work(writer)
        os.close(writer)
        self.reader = reader

    def _work(self, writer: int) -> None:
        try:
            faulthandler.disable()
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
            null = os.open(os.devnull, os.O_RDWR)
            for number in (0, 1, 2):
                os.dup2(null, number)
            answer = json.dumps(piece(self.parser, self.start, self.count, self.root, self.progress)).encode()
            with os.fdopen(writer, "wb") as pipe:
                pipe.write(answer)
            os._exit(0)
        except BaseException:
            os._exit(70)

    def answer(self) -> list[dict[str, Any]]:
        """One row; where inputs ended the process, one for each of them and for each range between them."""
        rows, children = [], [self]
        while children:
            child = children.pop()
            row = child._row()
            rows.append(row)
            if "cpu_s" not in row:
                seed, end = row["start"], child.start + child.count
                ranges = ((child.start, seed - child.start), (seed + 1, end - seed - 1))
                children += [Child(self.parser, start, count) for start, count in ranges if count]
        return rows

    def _row(self) -> dict[str, Any]:
        """The outcomes of the piece, or of the one input that ended it."""
        with os.fdopen(self.reader, "rb") as pipe:
            text = pipe.read()
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        shutil.rmtree(self.root, ignore_errors=True)
        if text and not code:
            return {"start": self.start, **json.loads(text)}
        seed = struct.unpack("<q", self.progress[:8])[0]
        if code == -signal.SIGPROF:
            kind, cause = "slow", f"no end after {STOP_S} s"
        else:
            kind, cause = "ended", f"the process by {signal.Signals(-code).name if code < 0 else f'exit {code}'}"
        failures = {f"{kind}: {cause}": {"count": 1, "seed": seed}}
        return {"start": seed, "counts": {kind: 1}, "failures": failures}


def pieces(parsers: Sequence[Parser], start: int, count: int, whole: bool) -> Iterator[tuple[Parser, int, int]]:
    """The ranges of seeds: of all parsers each its share of the count, cut where a piece ends."""
    total = sum(parser.share for parser in parsers)
    before = 0
    for parser in parsers:
        bounds = [start, start + count]
        if whole:  # rounded so that all shares add up
            bounds = [round(at * (before + parser.share) / total) - round(at * before / total) for at in bounds]
        before += parser.share
        at, end = bounds
        while at < end:
            size = min(end, (at // PIECE + 1) * PIECE) - at
            yield parser, at, size
            at += size


def load_rows(out: Path) -> list[dict[str, Any]]:
    """One row per piece; a line that was cut off is a piece to repeat."""
    rows = []
    path = out / "pieces.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def run(parsers: Sequence[Parser], start: int, count: int, jobs: int, out: Path, whole: bool) -> None:
    """All pieces that have no row yet, `jobs` at a time; each becomes a line of FOLDER/pieces.jsonl."""
    out.mkdir(parents=True, exist_ok=True)
    earlier = {(row["parser"], row["start"], row["of"]) for row in load_rows(out)}
    todo = [one for one in pieces(parsers, start, count, whole) if (one[0].name, *one[1:]) not in earlier]
    warm({parser.name: parser for parser, _, _ in todo}.values())
    gc.collect()
    gc.freeze()
    children: list[Child] = []
    with (out / "pieces.jsonl").open("a", encoding="utf-8") as file:
        for number, one in enumerate([*todo, *[None] * jobs], 1):
            if len(children) == jobs or (one is None and children):
                child = children.pop(0)
                rows = merge(child.answer(), child)
                file.write(f"\n{json.dumps(rows)}\n")  # behind what was cut off
                file.flush()
                print(f"{min(number, len(todo))} of {len(todo)}: {_line(rows)}", flush=True)
            if one is not None:
                children.append(Child(*one))


def merge(rows: list[dict[str, Any]], child: Child) -> dict[str, Any]:
    """The parts of a piece that an input ended, as one."""
    counts: Counter[str] = Counter()
    failures: dict[str, dict[str, Any]] = {}
    for row in rows:
        counts.update(row["counts"])
        for cause, failure in row["failures"].items():
            failures.setdefault(cause, {**failure, "count": 0})["count"] += failure["count"]
    most = {
        name: max(row.get(name, 0) for row in rows) for name in ("slowest_s", "peak_mb", "libraries_mb", "largest_mb")
    }
    seeds = {
        f"{name}_seed": max(rows, key=lambda row, key=key: row.get(key, 0)).get(f"{name}_seed", child.start)
        for name, key in (("slowest", "slowest_s"), ("largest", "largest_mb"))
    }
    cpu = round(sum(row.get("cpu_s", STOP_S) for row in rows), 2)
    whole = {"parser": child.parser.name, "start": child.start, "of": child.count, "cpu_s": cpu}
    return whole | {"counts": dict(counts), "failures": failures} | most | seeds


def warm(parsers: Iterable[Parser]) -> None:
    """Well-formed inputs through each parser, in this process: they are accepted, and libraries are imported once."""
    for parser in parsers:
        with tempfile.TemporaryDirectory(prefix="fuzz-", dir=_memory_folder()) as folder:
            sandbox = Sandbox(parser, Path(folder))
            with sandbox.enter():
                outcomes = {next(iter(files)): sandbox.run(files) for files in parser.examples()}
        kinds = {outcome.kind for outcome in outcomes.values()}
        if not kinds & {"accepted", "slow", "memory"} or kinds & {"uncaught", "touched"}:  # libraries take long, once
            raise SystemExit(f"{parser.name}: {outcomes}")


# --- what is printed ---


def _line(row: dict[str, Any]) -> str:
    bad = sum(failure["count"] for failure in row["failures"].values())
    return f"{row['parser']}, {row['start']} + {row['of']}, {bad} failures, {row['cpu_s']} CPU seconds"


def summary(out: Path) -> str:
    """A row per parser, the totals, and each distinct failure with the seed that shows it."""
    names = ("refused", "accepted", "uncaught", "slow", "memory", "unnamed", "touched", "ended")
    total: Counter[str] = Counter()
    by_parser: dict[str, list[dict[str, Any]]] = {}
    for row in load_rows(out):
        by_parser.setdefault(row["parser"], []).append(row)
    lines = [f"| parser | tried | {' | '.join(names)} | slowest, ms | peak, MB |", "|---|" + "---:|" * (len(names) + 3)]
    causes: list[tuple[int, str]] = []
    for name, rows in by_parser.items():
        counts: Counter[str] = Counter()
        failures: dict[str, dict[str, Any]] = {}
        for row in rows:
            counts.update(row["counts"])
            for cause, failure in row["failures"].items():
                failures.setdefault(cause, {**failure, "count": 0})["count"] += failure["count"]
        total.update(counts)
        slowest, peak = max(row["slowest_s"] for row in rows), max(row["peak_mb"] for row in rows)
        cells = [str(sum(counts.values())), *(str(counts[kind]) for kind in names), f"{slowest * 1e3:.0f}", str(peak)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
        causes += [(f["count"], f"{name}: {cause} (x{f['count']}, seed {f['seed']})") for cause, f in failures.items()]
    rows = load_rows(out)
    slow = max(rows, key=lambda row: row["slowest_s"])
    wide = max(rows, key=lambda row: row["largest_mb"])
    cells = [str(sum(total.values())), *(str(total[kind]) for kind in names)]
    lines.append(f"| all | {' | '.join(cells)} | {slow['slowest_s'] * 1e3:.0f} | {max(r['peak_mb'] for r in rows)} |")
    lines += [
        "",
        f"Slowest input: {slow['parser']}, seed {slow['slowest_seed']}, {slow['slowest_s']:.3f} CPU seconds.",
        f"Peak of a process: {max(r['peak_mb'] for r in rows)} MB, {max(r['libraries_mb'] for r in rows)} MB of it "
        f"libraries; one input adds at most {wide['largest_mb']} MB: {wide['parser']}, seed {wide['largest_seed']}.",
        f"{sum(row['cpu_s'] for row in rows):.0f} CPU seconds in all.",
        "",
        *(f"- {cause}" for _, cause in sorted(causes, reverse=True)),
    ]
    return "\n".join(lines)


def show(parser: Parser, seed: int) -> None:
    """One input and what came of it, with the traceback."""
    files = parser.input(seed)
    for name, content in files.items():
        print(f"--- {name}: {len(content)} bytes\n{content[:4000]!r}")
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=_memory_folder()) as folder:
        sandbox = Sandbox(parser, Path(folder))
        with sandbox.enter():
            print(sandbox.run(files))
            for name, content in files.items():
                _put(sandbox.folder / name, content)
            try:
                print(repr(parser.parse(sandbox.folder, sandbox.folder / next(iter(files))))[:500])
            except BaseException:
                traceback.print_exc()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--parser", default="all", help="one or more names, with commas between; all")
    arguments.add_argument("--start", type=int, default=0)
    arguments.add_argument("--count", type=int, default=1000, help="inputs: of one parser, or of all together")
    arguments.add_argument("--each", action="store_true", help="the count is of each parser")
    arguments.add_argument("--jobs", type=int, default=1)
    arguments.add_argument("--out", type=Path, default=Path("fuzz"))
    arguments.add_argument("--summary", type=Path, metavar="FOLDER")
    arguments.add_argument("--show", type=int, metavar="SEED")
    options = arguments.parse_args()
    os.environ["HF_HUB_OFFLINE"] = os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if options.summary:
        print(summary(options.summary))
        return
    by_name = catalogue()
    chosen = [*by_name.values()] if options.parser == "all" else [by_name[name] for name in options.parser.split(",")]
    if options.show is not None:
        show(chosen[0], options.show)
    else:
        run(
            chosen,
            options.start,
            options.count,
            options.jobs,
            options.out,
            options.parser == "all" and not options.each,
        )


if __name__ == "__main__":
    main()
