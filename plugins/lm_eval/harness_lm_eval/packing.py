"""Packs rows of tokens into forward passes that compute each shared prefix once. Plain data, no torch.

The rows form a radix tree. Several trees that fit are packed into one pass, and each token attends only to the path
from the root to itself. If a tree is too large for one pass, its prefix (usually the few-shot examples) becomes a stem:
it is computed in a pass of its own, and its keys and values are kept for the passes below it. A short prefix is
computed again in each pass instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

Row = tuple[int, ...]
STEM = 48  # a prefix becomes a stem if that saves at least so many tokens


@dataclass(eq=False)
class Node:
    """A node of the radix tree: tokens that the same rows share, after the tokens of the node's ancestors.

    `start` is the position of the first token. `targets` names the tokens to score: offset of a token in this node ->
    pairs of a request's number and the next token whose likelihood it needs.
    """

    start: int
    tokens: Row
    children: list[Node] = field(default_factory=list)
    targets: dict[int, list[tuple[int, int]]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """The number of tokens in this node and all below it."""
        return sum(len(node.tokens) for node in self.walk())

    def walk(self) -> Iterator[Node]:
        """This node and all below it, parents first."""
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(reversed(node.children))


@dataclass
class Branch:
    """A stem, the passes that use its keys and values, and the branches with longer stems."""

    stem: list[Node]
    passes: list[list[Node]]
    branches: list[Branch]

    @property
    def tokens(self) -> int:
        """The number of tokens that are computed for this branch."""
        own = sum(len(node.tokens) for node in self.stem) + sum(node.size for nodes in self.passes for node in nodes)
        return own + sum(branch.tokens for branch in self.branches)


@dataclass(frozen=True)
class Request:
    """A row of model input, and its targets: the tokens that should follow its last positions, one each."""

    row: Row
    targets: Row


def plan_passes(requests: Sequence[Request], capacity: int) -> Branch:
    """Plan the passes that answer all requests, of about `capacity` tokens each.

    A longer row has a pass of its own. A prefix too short for a stem may exceed the capacity.
    """
    return _divide(tree(requests), capacity)


def tree(requests: Sequence[Request]) -> Node:
    """The radix tree of all rows, with the targets at each token."""
    order = sorted(range(len(requests)), key=lambda at: requests[at].row)
    root = Node(0, ())
    path = [root]
    previous: Row = ()
    for at in order:
        row = requests[at].row
        shared = _shared_length(previous, row)
        while path[-1].start >= shared and len(path) > 1:
            path.pop()
        last = path[-1]
        if last.start + len(last.tokens) > shared:
            _split(last, shared - last.start)
        if len(row) > shared:
            child = Node(shared, row[shared:])
            last.children.append(child)
            path.append(child)
        _add_targets(path, at, requests[at])
        previous = row
    return root


def _shared_length(first: Row, second: Row) -> int:
    """The length of the common prefix of two rows."""
    for at, (first_token, second_token) in enumerate(zip(first, second, strict=False)):
        if first_token != second_token:
            return at
    return min(len(first), len(second))


def _split(node: Node, at: int) -> None:
    """Split a node at an offset: its tail becomes its only child."""
    tail = Node(node.start + at, node.tokens[at:], node.children)
    tail.targets = {offset - at: targets for offset, targets in node.targets.items() if offset >= at}
    node.targets = {offset: targets for offset, targets in node.targets.items() if offset < at}
    node.tokens, node.children = node.tokens[:at], [tail]


def _add_targets(path: Sequence[Node], number: int, request: Request) -> None:
    """Add the targets of a request to the nodes of its path."""
    first = len(request.row) - len(request.targets)
    for node in path:
        for offset in range(max(first - node.start, 0), len(node.tokens)):
            node.targets.setdefault(offset, []).append((number, request.targets[node.start + offset - first]))


# --- passes ---


def _divide(root: Node, capacity: int) -> Branch:
    """Divide the tree into passes, from the leaves up.

    A node that fits with all below it stays whole. Another becomes a stem if that saves enough tokens. Otherwise it is
    repeated in several passes.
    """
    sizes = _sizes(root)
    # By the id of a finished node: the nodes that go whole into passes above it, and the branches it needs.
    wholes: dict[int, list[Node]] = {}
    branches: dict[int, list[Branch]] = {}
    for node in reversed(list(root.walk())):
        if node is not root and sizes[id(node)] <= capacity:
            wholes[id(node)], branches[id(node)] = [node], []
            continue
        whole_nodes = [whole for child in node.children for whole in wholes.pop(id(child))]
        sub_branches = [branch for child in node.children for branch in branches.pop(id(child))]
        bins = _bins(whole_nodes, max(capacity - len(node.tokens), 1))
        saved = len(node.tokens) * (len(bins) + len(sub_branches) - 1)
        if node is root:
            return Branch([], bins, sub_branches)
        if not node.children:  # a row longer than a pass
            wholes[id(node)], branches[id(node)] = [node], []
        elif saved >= STEM:
            wholes[id(node)], branches[id(node)] = [], [Branch([node], bins, sub_branches)]
        else:
            wholes[id(node)] = [_copy(node, nodes, first=not at) for at, nodes in enumerate(bins)]
            for at, branch in enumerate(sub_branches):
                branch.stem.insert(0, _copy(node, [], first=not bins and not at))
            branches[id(node)] = sub_branches
    raise AssertionError("the loop returns at the root")


def _sizes(root: Node) -> dict[int, int]:
    """The size of every node, by its id."""
    sizes: dict[int, int] = {}
    for node in reversed(list(root.walk())):
        sizes[id(node)] = len(node.tokens) + sum(sizes[id(child)] for child in node.children)
    return sizes


def _copy(node: Node, children: list[Node], first: bool) -> Node:
    """A copy of the node with some of its children. Only the first copy has the node's targets."""
    return Node(node.start, node.tokens, children, node.targets if first else {})


def _bins(nodes: Sequence[Node], capacity: int) -> list[list[Node]]:
    """Pack nodes into few passes by the first-fit-decreasing rule. Nodes of one pass keep their order."""
    sizes = [node.size for node in nodes]
    bins: list[tuple[int, list[int]]] = []  # free tokens, indices of nodes
    for at in sorted(range(len(nodes)), key=lambda at: -sizes[at]):
        for number, (free, members) in enumerate(bins):
            if sizes[at] <= free:
                members.append(at)
                bins[number] = (free - sizes[at], members)
                break
        else:
            bins.append((capacity - sizes[at], [at]))
    return [[nodes[at] for at in sorted(members)] for _, members in bins]
