"""The timing protocol against planted truth, and what keeps its figures honest."""

from __future__ import annotations

import math
import random
import statistics
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import stats
from harness.api import Samples, TimingPlan
from harness.latency import gates, timing, timing_stats

OFFSET, WITHIN, DRIFT = 0.01, 0.005, 0.03  # sd between processes, sd within one, speed lost over a session
SIMULATED = 500
PRESETS = ["quick", "paper"]


class Machine:
    """A machine that slows down while it is used. Every process that opens a model has an offset of its own."""

    def __init__(self, seed, visits=30):
        self.draw, self.visits, self.done = random.Random(seed), visits, 0

    def opener(self, true_ns):
        def opened():
            return Process(self, true_ns * math.exp(self.draw.gauss(0, OFFSET)))

        return opened


class Process:
    def __init__(self, machine, ns):
        self.machine, self.ns = machine, ns

    def measure(self, plan):
        slower = 1 + DRIFT * self.machine.done / self.machine.visits
        self.machine.done += 1
        noise = [math.exp(self.machine.draw.gauss(0, WITHIN)) for _ in range(plan.iterations)]
        return Samples([round(self.ns * slower * n) for n in noise])

    def close(self):
        pass


class Shared(Machine):
    """A machine that others use too, by bursts of a pass, a visit or a few visits."""

    def __init__(self, seed, visits=30):
        super().__init__(seed, visits)
        self.burst = 0

    def opener(self, true_ns):
        def opened():
            return Slowed(self, true_ns * math.exp(self.draw.gauss(0, OFFSET)))

        return opened

    def often(self, share, size):
        return self.draw.expovariate(1 / size) if self.draw.random() < share else 0.0


class Slowed(Process):
    def measure(self, plan):
        if self.machine.done % 3 == 0:
            self.machine.burst = self.machine.often(0.35, 0.10)
        visit = self.machine.burst * (self.machine.draw.random() < 0.6) + self.machine.often(0.25, 0.10)
        return Samples(
            [round(ns * (1 + visit + self.machine.often(0.25, 0.06))) for ns in super().measure(plan).wall_ns]
        )


def faster_halves(rounds):
    clock = timing.clock(rounds, "wall")
    return clock.speedup, *clock.speedup_ci95


def means_of_medians(rounds):
    """Right where noise is as often fast as slow: the mean of the rounds' ratios, each visit by its median."""
    sides = (rounds.dense, rounds.again, rounds.pruned)
    dense, again, pruned = ([statistics.median(visit.wall_ns) for visit in side] for side in sides)
    logs = [math.log(math.sqrt(a * b) / c) for a, b, c in zip(dense, again, pruned, strict=True)]
    return tuple(map(math.exp, (statistics.fmean(logs), *stats.interval(logs))))


def by_protocol(preset, machines=Machine, figure=faster_halves):
    """The ratio and its interval, by the protocol of a preset as it stands."""
    protocol = replace(timing.PROTOCOLS[preset], seconds=0.0)

    def measured(seed, ratio):
        machine = machines(seed, visits=3 * protocol.rounds)
        return figure(timing.interleave(machine.opener(1e8), machine.opener(1e8 / ratio), protocol, "wall"))

    return measured


def pooled(seed, ratio):
    """What most tools do: one process each, one after the other, all iterations in one bag, a t interval."""
    machine = Machine(seed, visits=2)
    dense, pruned = (machine.opener(true)().measure(TimingPlan(0, 50)).wall_ns for true in (1e8, 1e8 / ratio))
    middle = statistics.fmean(dense) / statistics.fmean(pruned)
    spread = math.sqrt(sum((statistics.stdev(b) / statistics.fmean(b)) ** 2 / len(b) for b in (dense, pruned)))
    return middle, middle * (1 - 1.98 * spread), middle * (1 + 1.98 * spread)


def resident(seed, ratio):
    """The project's own rounds with both models open throughout: what is left to devices that take long to open one."""
    protocol = timing.TimingProtocol(rounds=5, warmup=0, iterations=10, seconds=0.0)
    machine = Machine(seed, visits=15)
    return faster_halves(timing.interleave(machine.opener(1e8), machine.opener(1e8 / ratio), protocol, "wall"))


def share(protocol, ratio, holds):
    return sum(holds(*protocol(seed, ratio)) for seed in range(SIMULATED)) / SIMULATED


def different(_, low, high):
    return low > 1 or high < 1


def found(middle, low, _):
    """A model that is 5 % faster is called faster, by 3 to 7 %."""
    return low > 1 and 1.03 <= middle <= 1.07


def holds_truth(_, low, high):
    return low <= 1.05 <= high


@pytest.mark.parametrize("preset", PRESETS)
def test_equal_models_are_called_equal(preset):
    assert share(by_protocol(preset), 1.0, different) <= 0.06


@pytest.mark.parametrize("preset", PRESETS)
def test_five_per_cent_are_found(preset):
    assert share(by_protocol(preset), 1.05, found) >= 0.95


@pytest.mark.parametrize("preset", PRESETS)
def test_the_interval_holds_the_truth(preset):
    assert share(by_protocol(preset), 1.05, holds_truth) >= 0.93


@pytest.mark.parametrize("preset", PRESETS)
def test_who_else_uses_the_machine_hardly_moves_the_ratio(preset):
    """Half as far off as the means of medians are, and the interval still holds the truth."""
    ours = by_protocol(preset, Shared)

    def off(protocol):
        return math.sqrt(statistics.fmean(math.log(protocol(seed, 1.05)[0] / 1.05) ** 2 for seed in range(SIMULATED)))

    assert off(ours) < 0.6 * off(by_protocol(preset, Shared, means_of_medians))
    assert share(ours, 1.0, different) <= 0.06
    assert share(ours, 1.05, holds_truth) >= 0.93


def test_pooling_fails_both():
    """The counter-example, by the same measures: nearly all pairs of equal models differ, many truths are missed."""
    assert share(pooled, 1.0, different) > 0.5
    assert share(pooled, 1.05, found) < 0.95
    assert share(pooled, 1.05, holds_truth) < 0.5


def test_one_process_for_both_models_does_not_see_what_processes_differ_by():
    """Why records say how many processes there were, and docs what one of them means."""
    assert share(resident, 1.0, different) > 0.3


def test_a_fresh_process_per_visit_is_closed_again():
    opened = []

    class Counted(Process):
        def close(self):
            opened.remove(self)

    def opener():
        made = Counted(Machine(0), 1e6)
        opened.append(made)
        assert len(opened) == 1
        return made

    rounds = timing.interleave(opener, opener, timing.TimingProtocol(3, 0, 2, 0, fresh=True), "wall")
    assert not opened
    assert rounds.processes == 9


def test_rounds_are_doubled_once_where_dense_differs_from_itself():
    class Restless(Process):
        def measure(self, plan):
            return Samples([round(1e6 * self.machine.draw.uniform(0.5, 2)) for _ in range(plan.iterations)])

    machine = Machine(1)
    protocol = timing.TimingProtocol(4, 0, 2, 0)
    rounds = timing.interleave(lambda: Restless(machine, 1), lambda: Restless(machine, 1), protocol, "wall")
    assert len(rounds.dense) == len(rounds.pruned) == len(rounds.again) == 8
    calm = timing.interleave(machine.opener(1e6), machine.opener(1e6), protocol, "wall")
    assert len(calm.dense) == 4


def test_a_visit_that_fails_leaves_nothing_open():
    closed = []

    class Failing(Process):
        def measure(self, plan):
            raise RuntimeError("gone")

        def close(self):
            closed.append(self)

    for fresh in (False, True):
        closed.clear()
        with pytest.raises(RuntimeError):
            timing.interleave(
                lambda: Failing(None, 1), lambda: Failing(None, 1), timing.TimingProtocol(2, 0, 1, 0, fresh), "wall"
            )
        assert len(closed) == (1 if fresh else 2)


# --- quantiles ---


def test_small_samples_bound_no_tail():
    assert timing_stats.smallest_sample(0.99) == 459
    assert timing_stats.smallest_sample(0.9) == 44
    assert timing_stats.missing_bound_reason(200, 0.99) == "p99: n/a (n=200 < 459)"
    assert timing_stats.missing_bound_reason(459, 0.99) == ""
    assert timing_stats.quantile_bound(list(range(458)), 0.99) is None
    assert timing_stats.quantile_bound(list(range(459)), 0.99) == 458


@given(st.integers(44, 400), st.sampled_from([0.5, 0.9]))
def test_quantile_bounds_are_binomial(count, share):
    """Against the definition: the smallest order statistic whose rank exceeds the binomial's 99 % point."""
    bound = timing_stats.quantile_bound(list(range(count)), share)
    below = [math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(count + 1)]
    assert sum(below[: bound + 1]) >= 0.99 - 1e-9
    assert sum(below[:bound]) < 0.99 + 1e-9


def test_spearman_knows_order_only():
    assert timing_stats.spearman([1, 2, 3, 4], [10, 100, 1000, 1e9]) == pytest.approx(1)
    assert timing_stats.spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert timing_stats.spearman([1, 1, 2, 2], [1, 1, 2, 2]) == pytest.approx(1)
    assert timing_stats.spearman([1, 1, 1], [1, 2, 3]) == 0


# --- gates ---


def latency(floor_cpu=0.01, floor_wall=0.01):
    rounds = timing.interleave(lambda: Both(), lambda: Both(), timing.TimingProtocol(3, 0, 3, 0), "cpu")
    found = timing.latency(rounds, "cpu", timing.TimingProtocol(3, 0, 3, 0), "device")
    found.noise_floor, found.other_clock["wall"].noise_floor = floor_cpu, floor_wall
    return found


class Both:
    def measure(self, plan):
        return Samples([100, 101, 102], [90, 91, 92])

    def close(self):
        pass


CALM = {"cores": 2, "threads": 1}
WINDOW = (
    {"time_ns": 0, "own_ns": 0, "busy_ns": 0, "steal_ns": 0, "pressure_us": 0, **CALM},
    {"time_ns": 10**9, "own_ns": 99 * 10**7, "busy_ns": 10**9, "steal_ns": 0, "pressure_us": 0, **CALM},
)


def test_a_calm_window_passes_every_gate():
    found = gates.evaluate_gates([WINDOW], latency(), "w")
    assert {g.name for g in found} == {"pressure", "steal", "others", "running", "noise floor"}
    assert all(g.ok for g in found)
    assert not gates.failed_gates(found, "cpu")


@pytest.mark.parametrize(
    ("name", "after"),
    [
        ("pressure", {"pressure_us": 60_000}),
        ("steal", {"steal_ns": 2 * 10**7}),
        ("others", {"busy_ns": 19 * 10**8}),
        ("running", {"own_ns": 5 * 10**8}),
    ],
)
def test_what_disturbs_wall_time_leaves_cpu_time_alone(name, after):
    found = gates.evaluate_gates([(WINDOW[0], WINDOW[1] | after)], latency(), "w")
    assert name in [g.name for g in gates.failed_gates(found, "wall")]
    assert not gates.failed_gates(found, "cpu")


def test_each_clock_has_its_own_noise_floor():
    found = gates.evaluate_gates([WINDOW], latency(floor_cpu=0.02, floor_wall=0.4), "w")
    assert [g.guards for g in found if not g.ok] == ["wall"]
    found = gates.evaluate_gates([WINDOW], latency(floor_cpu=0.4, floor_wall=0.02), "w")
    assert [g.guards for g in gates.failed_gates(found, "cpu")] == ["cpu"]


def test_gates_of_accelerators():
    state = {"throttle": ["sw_thermal"], "other_processes": 2, "fallback": ["Softmax"]}
    calm = {"throttle": [], "other_processes": 0, "fallback": []}
    found = gates.evaluate_gates([(calm, state)], latency(), "w")
    assert {g.name for g in gates.failed_gates(found, "device")} == {"throttling", "alone", "fallback"}
    assert {g.name for g in gates.failed_gates(found, "cpu")} == {"fallback"}
    capped = gates.evaluate_gates([(calm, calm | {"throttle": ["sw_power_cap"]})], latency(), "w")
    assert not gates.failed_gates(capped, "device")
    assert "sw_power_cap" in next(g.detail for g in capped if g.name == "throttling")
    assert not [g for g in gates.evaluate_gates([(calm, calm)], latency(), "w") if not g.ok]


def test_readings_that_are_missing_make_no_gate():
    assert {g.name for g in gates.evaluate_gates([({}, {})], latency(), "w")} == {"noise floor"}
