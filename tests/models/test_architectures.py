"""A network that is no decoder goes the same way: registered by a hook, cut, gated, counted."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from harness import plugins
from harness.api import ArchitectureSpec, Context, Cut, PrunerSpec, Shape
from harness.errors import BadCut, Unsupported
from harness.models import counting, surgery
from harness.models.anatomy.core import Anatomy, Member, Op, Site
from harness.models.architectures import lookup
from harness.models.cut import check_cut
from harness.pruning.gates import gated
from harness.pruning.importance import by_unit, magnitude, output_magnitude, output_member

from ..test_plugins import install

INPUTS, HIDDEN, CLASSES = 4, 6, 3


class Net(nn.Module):
    """A hidden layer with a batch norm; the head reads the input beside it, as behind a concatenation."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(model_type="mlp", hidden=hidden)
        self.first = nn.Linear(INPUTS, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.last = nn.Linear(INPUTS + hidden, CLASSES)

    def forward(self, x):
        return self.last(torch.cat([x, torch.relu(self.norm(self.first(x)))], dim=1))


class Mlp:
    name, task = "mlp", "text"

    def check(self, config, where):
        pass

    def anatomy(self, config):
        units = config["hidden"]
        sizes = {"first.weight": (units, INPUTS), "first.bias": (units,), "norm.weight": (units,)}
        sizes |= {"norm.bias": (units,), "norm.running_mean": (units,), "norm.running_var": (units,)}
        members = [Member(name, 0) for name in sizes]
        members.append(Member("last.weight", 1, at=tuple((INPUTS + unit,) for unit in range(units))))
        sizes |= {"last.weight": (CLASSES, INPUTS + units), "last.bias": (CLASSES,)}
        return Anatomy(
            family="mlp",
            config=config,
            tensors=sizes,
            sites={"hidden": Site("hidden", "channels", units, tuple(members), layer=0, least=2)},
            head=frozenset({"last.bias"}),
            ops=(Op("first.weight", positions=1), Op("last.weight", positions=1)),
            buffers=frozenset({"norm.running_mean", "norm.running_var"}),
            architecture="mlp",
        )

    def config_of(self, anatomy: Anatomy, shape: Shape):
        return {"model_type": "mlp", "hidden": anatomy.complete(shape)["hidden"]}

    def build(self, config, tensors):
        model = Net(config["hidden"]).eval()
        model.load_state_dict(tensors | {"norm.num_batches_tracked": torch.tensor(0)})
        return model

    def tensors(self, model):
        return {name: tensor for name, tensor in model.state_dict().items() if "num_batches" not in name}

    def rename(self, anatomy, shape):
        return {name: name for name in anatomy.tensor_shapes(shape)}

    def rescale(self, anatomy, state, shape):
        pass


@pytest.fixture
def mlp(monkeypatch):
    spec = ArchitectureSpec(name="mlp", target=f"{__name__}:Mlp", summary="two layers", model_types=("mlp",))
    monkeypatch.setitem(plugins.registry().specs["architecture"], "mlp", spec)
    lookup.architecture.cache_clear()
    torch.manual_seed(0)
    model = Net(HIDDEN)
    model(torch.randn(32, INPUTS))  # running means that are not zero
    yield model.eval(), lookup.anatomy_of({"model_type": "mlp", "hidden": HIDDEN})
    lookup.architecture.cache_clear()


KEEP = [0, 3, 5]


def test_the_sliced_network_computes_what_the_zeroed_and_the_gated_one_compute(mlp):
    model, anatomy = mlp
    cut = check_cut(anatomy, Cut(keep={"hidden": KEEP}))
    x = torch.randn(8, INPUTS)
    smaller = surgery.apply(model, anatomy, cut)
    assert smaller.first.weight.shape == (3, INPUTS)
    assert smaller.norm.running_mean.shape == (3,)
    assert {name: tuple(t.shape) for name, t in surgery.dense_state(smaller).items()} == anatomy.tensor_shapes(
        cut.shape
    )
    zeroed = Net(HIDDEN).eval()
    zeroed.load_state_dict(surgery.zeroed(model, anatomy, cut), strict=False)
    gates = torch.zeros(HIDDEN)
    gates[KEEP] = 1
    with torch.no_grad():
        torch.testing.assert_close(smaller(x), zeroed(x))
        with gated(model, anatomy, {"hidden": gates}):
            torch.testing.assert_close(smaller(x), model(x))


def test_buffers_are_cut_and_not_counted(mlp):
    model, anatomy = mlp
    assert anatomy.params() == sum(p.numel() for p in model.parameters()) == counting.count(model)[0]
    smaller = surgery.apply(model, anatomy, check_cut(anatomy, Cut(keep={"hidden": KEEP})))
    assert anatomy.params({"hidden": 3}) == sum(p.numel() for p in smaller.parameters())
    assert anatomy.unit_params(anatomy.sites["hidden"]) == INPUTS + 3 + CLASSES


def test_scores_belong_to_the_unit_that_is_read(mlp):
    model, anatomy = mlp
    state = surgery.dense_state(model)
    with torch.no_grad():
        state["last.weight"][:, INPUTS + 2] = 100.0
        state["last.weight"][:, 2] = 1000.0  # reads an input, which is no unit
    assert output_member(anatomy.sites["hidden"]).tensor == "last.weight"
    assert int(output_magnitude(anatomy, state)["hidden"].argmax()) == 2
    assert int(magnitude(anatomy, state)["hidden"].argmax()) == 2


def test_a_cut_below_what_a_site_needs_is_refused(mlp):
    _, anatomy = mlp
    with pytest.raises(BadCut, match="leaves 1 of hidden, which needs at least 2"):
        check_cut(anatomy, Cut(keep={"hidden": [4]}))


def test_a_member_owns_as_many_indices_as_it_says():
    assert Member("w", 0, 2).rows([0, 3]) == [0, 1, 6, 7]
    assert Member("w", 0, 2, at=((0, 9), (4, 5))).rows([1, 0]) == [4, 5, 0, 9]
    with pytest.raises(ValueError, match="each unit must own 2 indices"):
        Member("w", 0, 2, at=((0, 9), (4,)))


def test_methods_say_what_they_work_on(mlp):
    _, anatomy = mlp
    answers = {
        entry: PrunerSpec(name="p", target="m:P", summary="", architectures=(entry,)).works_on(anatomy)
        for entry in ("*", "mlp", "decoder", "llama")
    }
    assert answers == {"*": True, "mlp": True, "decoder": False, "llama": False}


def test_an_unknown_model_type_is_named_with_the_known_ones(mlp):
    with pytest.raises(Unsupported, match="'bert' has no anatomy yet") as error:
        lookup.anatomy_of({"model_type": "bert"})
    assert error.value.remedy == "supported: gemma, llama, mistral, mlp, qwen2, qwen3"


@pytest.mark.parametrize(
    ("make", "old", "new"),
    [
        (lambda **fields: PrunerSpec(name="p", target="m:P", summary="", **fields), "families", "architectures"),
        (lambda **fields: PrunerSpec(name="p", target="m:P", summary="", **fields), "sound", "check_settings"),
        (Cut, "told", "details"),
    ],
)
def test_names_of_the_api_before_work_and_warn(make, old, new):
    value = ("llama",) if old == "families" else "m:check" if old == "sound" else {"steps": 3}
    with pytest.warns(FutureWarning, match=f"{old} is now called {new}"):
        made = make(**{old: value})
    with pytest.warns(FutureWarning, match=f"{old} is now called {new}"):
        assert getattr(made, old) == getattr(made, new) == value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert getattr(make(**{new: value}), new) == value
    with pytest.raises(TypeError, match=f"got both {new} and {old}"):
        make(**{old: value, new: value})


def test_a_cut_can_be_changed_by_its_old_name_too():
    cut = Cut()
    with pytest.warns(FutureWarning, match="told is now called details"):
        cut.told = {"steps": 3}
    assert cut.details == {"steps": 3}


OF_VERSION_1 = """
from harness import PrunerSpec, hookimpl
HARNESS_API = 1
@hookimpl
def harness_register_pruners():
    return [PrunerSpec(name="older", target="harness_older:Older", summary="without families"),
            PrunerSpec(name="named", target="harness_older:Older", summary="with them", families=("llama",))]
"""


def test_a_plugin_of_the_api_before_loads_warns_and_keeps_its_meaning(tmp_path):
    install(tmp_path, "older", OF_VERSION_1)
    script = (
        "from harness.plugins import registry\n"
        "specs = registry().specs['pruner']\n"
        "print(specs['older'].architectures, specs['named'].architectures)"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.stdout == "('decoder',) ('llama',)\n", done.stderr
    assert "PrunerSpec.families is now called architectures" in done.stderr


def test_two_architectures_cannot_share_a_model_type():
    registry = plugins.Registry(plugins.registry().manager)
    origin = plugins.Origin("a", "a", "1")
    first = ArchitectureSpec(name="first", target="m:A", summary="", model_types=("x", "y"))
    second = ArchitectureSpec(name="second", target="m:B", summary="", model_types=("y",))
    plugins._register(registry, [("architecture", first)], origin)
    with pytest.raises(ValueError, match="model type 'y' is already registered by architecture 'first'"):
        plugins._register(registry, [("architecture", second)], origin)


def test_an_unknown_task_is_named():
    with pytest.raises(Unsupported, match="there is no task 'sound'"):
        lookup.task("sound")


def test_an_embedding_does_not_read_the_stream_that_it_writes():
    stream = lookup.anatomy_of(plugins.registry().specs["model"]["tiny"].config).sites["hidden"]
    assert "model.embed_tokens.weight" in {member.tensor for member in stream.members}
    assert "model.embed_tokens.weight" not in {member.tensor for member in stream.readers}
    assert not stream.exact


def test_scores_of_a_member_with_indices_of_its_own(mlp):
    _, anatomy = mlp
    (member,) = anatomy.sites["hidden"].readers
    values = torch.arange(float(INPUTS + HIDDEN))
    assert by_unit(values, member).flatten().tolist() == [4, 5, 6, 7, 8, 9]


def test_calibration_data_comes_in_the_task_s_own_form(tmp_path):
    windows = torch.arange(24).reshape(3, 8)
    ctx = Context(
        anatomy=None,
        tokenizer=None,
        work_dir=tmp_path,
        seed=lambda *_: 0,
        calibration=lambda count, length: windows[:count, :length],
        task=lookup.task("text"),
    )
    batches = ctx.batches(2, length=5)
    assert [batch["input_ids"].tolist() for batch in batches] == [[[0, 1, 2, 3, 4]], [[8, 9, 10, 11, 12]]]
    assert sum(map(ctx.task.count, batches)) == 10
    ctx.calibration = None
    with pytest.raises(ValueError, match="needs="):
        ctx.batches(2, length=5)
