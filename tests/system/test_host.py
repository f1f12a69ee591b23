"""What a machine is called: rows of two that share a name would stand on one board."""

from __future__ import annotations

import pytest

from harness.system.host import cpu_model, cpu_named

EPYC = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: {}\nmodel name\t: AMD EPYC\n"


def test_a_name_that_hypervisors_give_to_whole_families_says_which_generation():
    assert cpu_named(EPYC.format(17)) == "AMD EPYC (family 25, model 17)"
    assert cpu_named(EPYC.format(1)) != cpu_named(EPYC.format(17))


@pytest.mark.parametrize("name", ["AMD EPYC 7763 64-Core Processor", "Intel(R) Core(TM) i7-8700 CPU @ 3.20GHz"])
def test_a_name_with_a_number_of_its_own_stays(name):
    assert cpu_named(f"cpu family\t: 6\nmodel\t\t: 1\nmodel name\t: {name}\n") == name


def test_where_nothing_is_told_nothing_is_made_up():
    assert cpu_named("") == cpu_named("processor\t: 0\nCPU part\t: 0xd0c\n") == ""
    assert cpu_model()
