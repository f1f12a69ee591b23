"""The layout of the code, measured: `python -m tests.house` prints files, imports and circles by room."""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from tabulate import tabulate

ROOT = Path(__file__).parent.parent

# Rooms, the lowest first. A file imports from its own room and from rooms that come earlier in this list.
ROOMS = (
    "errors",
    "stats",
    "system",
    "markup",
    "quantities",
    "formatting",
    "api",
    "hookspecs",
    "builtin",
    "plugins",
    "models/anatomy",
    "models/tasks",
    "models/architectures",
    "models",
    "models/export",
    "records",
    "models/saved",
    "pruning",
    "pruning/training",
    "evaluation",
    "models/loading",
    "devices",
    "devices/remote/programs",
    "devices/remote",
    "latency",
    "latency/cost_table",
    "resolve",
    "conformance",
    "cell",
    "functions",
    "sweep",
    "leaderboard",
    "leaderboard/audit",
    "cli",
    "__main__",
)
# Core files that may name parts of a decoder: its architecture, and the projections that get LoRA adapters.
MAY_NAME_DECODER_PARTS = {
    "models/architectures/decoder.py",
    "models/architectures/decoder_families.py",
    "models/architectures/modeling.py",
    "models/architectures/modeling_pruned_llama.py",
    "pruning/training/adapters.py",
}
# What a decoder is made of, in names of transformers.
DECODER_PARTS = re.compile(
    r"self_attn|[qkvo]_proj|(?:gate|up|down)_proj|model\.layers|input_layernorm|lm_head|embed_tokens"
)


def core() -> dict[str, Path]:
    """The modules of the core by name."""
    modules = {}
    for path in sorted((ROOT / "harness").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def room(path: Path) -> str:
    """The folder of a file; a file on the ground floor is a room of its own."""
    place = path.relative_to(ROOT / "harness")
    return place.stem if len(place.parts) == 1 else place.parent.as_posix()


def imports(path: Path) -> set[str]:
    """What a file imports anywhere in it, leaving out what only a type checker reads."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    names = set()
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def file_imports() -> dict[str, set[str]]:
    """Which modules of the core each of them imports."""
    modules = core()
    arrows = {}
    for name, path in modules.items():
        others = (imports(path) & set(modules)) - {name, "harness"}
        packages = {other for other in others if any(longer.startswith(f"{other}.") for longer in others)}
        arrows[name] = others - packages
    return arrows


def room_imports(arrows: Mapping[str, Iterable[str]]) -> dict[str, Counter[str]]:
    modules = core()
    between: dict[str, Counter[str]] = defaultdict(Counter)
    for name, others in arrows.items():
        for other in others:
            if room(modules[name]) != room(modules[other]):
                between[room(modules[name])][room(modules[other])] += 1
    return between


def circle(arrows: Mapping[str, Iterable[str]]) -> list[str]:
    """One circle of imports, if there is any."""
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def repeated_names(most: int = 4) -> dict[str, int]:
    """Public functions and classes of one name in so many files, methods aside."""
    names = Counter(
        node.name
        for path in core().values()
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    )
    return {name: count for name, count in names.items() if count >= most}


def naming_decoder_parts() -> Iterator[str]:
    for path in core().values():
        if DECODER_PARTS.search(path.read_text(encoding="utf-8")):
            yield path.relative_to(ROOT / "harness").as_posix()


def main() -> None:
    modules, arrows = core(), file_imports()
    between = room_imports(arrows)
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules.items()}
    rows = []
    for place in ROOMS:
        files = [name for name, path in modules.items() if room(path) == place]
        largest = max(files, key=lambda name: lines[name])
        size = f"{largest.rpartition('.')[2]} ({lines[largest]})"
        rows.append([place, len(files), size, sum(between[place].values()), len(between[place])])
    headers = ["room", "files", "largest file (lines)", "imports of other rooms", "rooms imported"]
    print(tabulate(rows, headers, "github"))
    text = "\n".join(path.read_text(encoding="utf-8") for path in modules.values())
    anything = len(re.findall(r"\bAny\b", text)) - len(re.findall(r"import .*\bAny\b", text))
    print(f"\nrooms {len(ROOMS)}, files {len(modules)}, lines {sum(lines.values()):,}")
    print(f"imports between rooms {sum(map(len, between.values()))}")
    print(f"circle of files: {circle(arrows) or 'none'}; circle of rooms: {circle(between) or 'none'}")
    print(f"names in four or more files: {repeated_names() or 'none'}")
    print(f"core files that name parts of decoders: {', '.join(naming_decoder_parts())}")
    print(f"`Any` per 1,000 lines: {1000 * anything / sum(lines.values()):.1f}")


if __name__ == "__main__":
    main()
