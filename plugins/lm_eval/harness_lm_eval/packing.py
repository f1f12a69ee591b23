"""Rows of tokens as passes in which every shared beginning stands once. Plain data, no torch.

The rows form a radix tree. What fits is packed into one pass, whole trees side by side, and each token sees only the
path it hangs on. Where a tree is too large for one pass, its beginning (a few-shot prefix, above all) is a stem whose
keys and values are kept for all that follows; a short one is rather computed again in each pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

Row = tuple[int, ...]
STEM = 48  # tokens that must be saved before an own pass for a beginning pays


@dataclass(eq=False)
class Node:
    """Tokens that the same rows share, after what their ancestors hold."""

    start: int
    tokens: Row
    children: list[Node] = field(default_factory=list)
    asked: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # offset -> (request, next token) to score

    @property
    def size(self) -> int:
        return sum(len(node.tokens) for node in self.walk())

    def walk(self) -> Iterator[Node]:
        """Itself and all below it, parents first."""
        ahead = [self]
        while ahead:
            node = ahead.pop()
            yield node
            ahead.extend(reversed(node.children))


@dataclass
class Branch:
    """A stem, the passes that see its keys and values, and what branches off further on."""

    stem: list[Node]
    passes: list[list[Node]]
    branches: list[Branch]

    @property
    def tokens(self) -> int:
        """All that is computed for it."""
        own = sum(len(node.tokens) for node in self.stem) + sum(node.size for nodes in self.passes for node in nodes)
        return own + sum(branch.tokens for branch in self.branches)


@dataclass(frozen=True)
class Request:
    """A row of model input, and the tokens that should follow its last positions, one each."""

    row: Row
    targets: Row


def planned(requests: Sequence[Request], capacity: int) -> Branch:
    """The passes that answer all requests, of about `capacity` tokens each: a row that is longer goes alone, and a
    beginning too short for a stem may come on top."""
    return _divided(tree(requests), capacity)


def tree(requests: Sequence[Request]) -> Node:
    """The radix tree of all rows, with what is asked at each token."""
    order = sorted(range(len(requests)), key=lambda at: requests[at].row)
    root = Node(0, ())
    path = [root]
    above: Row = ()
    for at in order:
        row = requests[at].row
        shared = _shared(above, row)
        while path[-1].start >= shared and len(path) > 1:
            path.pop()
        last = path[-1]
        if last.start + len(last.tokens) > shared:
            _split(last, shared - last.start)
        if len(row) > shared:
            grown = Node(shared, row[shared:])
            last.children.append(grown)
            path.append(grown)
        _ask(path, at, requests[at])
        above = row
    return root


def _shared(first: Row, second: Row) -> int:
    for at, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return at
    return min(len(first), len(second))


def _split(node: Node, at: int) -> None:
    """The tail of a node becomes its only child."""
    tail = Node(node.start + at, node.tokens[at:], node.children)
    tail.asked = {offset - at: asked for offset, asked in node.asked.items() if offset >= at}
    node.asked = {offset: asked for offset, asked in node.asked.items() if offset < at}
    node.tokens, node.children = node.tokens[:at], [tail]


def _ask(path: Sequence[Node], number: int, request: Request) -> None:
    first = len(request.row) - len(request.targets)
    for node in path:
        for offset in range(max(first - node.start, 0), len(node.tokens)):
            node.asked.setdefault(offset, []).append((number, request.targets[node.start + offset - first]))


# --- passes ---


def _divided(root: Node, capacity: int) -> Branch:
    """From the leaves up: what fits stays whole, what does not is a stem, or begins several passes."""
    sizes = _sizes(root)
    wholes: dict[int, list[Node]] = {}
    branches: dict[int, list[Branch]] = {}
    for node in reversed(list(root.walk())):
        if node is not root and sizes[id(node)] <= capacity:
            wholes[id(node)], branches[id(node)] = [node], []
            continue
        below = [whole for child in node.children for whole in wholes.pop(id(child))]
        further = [branch for child in node.children for branch in branches.pop(id(child))]
        alone = not node.children
        bins = _bins(below, max(capacity - len(node.tokens), 1))
        saved = len(node.tokens) * (len(bins) + len(further) - 1)
        if node is root:
            return Branch([], bins, further)
        if alone:
            wholes[id(node)], branches[id(node)] = [node], []
        elif saved >= STEM:
            wholes[id(node)], branches[id(node)] = [], [Branch([node], bins, further)]
        else:
            wholes[id(node)] = [_begun(node, nodes, first=not at) for at, nodes in enumerate(bins)]
            for at, branch in enumerate(further):
                branch.stem.insert(0, _begun(node, [], first=not bins and not at))
            branches[id(node)] = further
    raise AssertionError("the root ends the walk")


def _sizes(root: Node) -> dict[int, int]:
    found: dict[int, int] = {}
    for node in reversed(list(root.walk())):
        found[id(node)] = len(node.tokens) + sum(found[id(child)] for child in node.children)
    return found


def _begun(node: Node, children: list[Node], first: bool) -> Node:
    """The node once more for some of its children; only the first answers what is asked of it."""
    return Node(node.start, node.tokens, children, node.asked if first else {})


def _bins(nodes: Sequence[Node], capacity: int) -> list[list[Node]]:
    """Nodes in as few passes as the largest-first rule finds; neighbours keep their order within one."""
    sizes = [node.size for node in nodes]
    found: list[tuple[int, list[int]]] = []
    for at in sorted(range(len(nodes)), key=lambda at: -sizes[at]):
        for place, (free, members) in enumerate(found):
            if sizes[at] <= free:
                members.append(at)
                found[place] = (free - sizes[at], members)
                break
        else:
            found.append((capacity - sizes[at], [at]))
    return [[nodes[at] for at in sorted(members)] for _, members in found]
