"""The faults of tests/mutation: each can still be sown."""

import runpy

import pytest

from repository import ROOT

FAULTS = runpy.run_path(str(ROOT / "tests/mutation/faults.py"))["FAULTS"]


@pytest.mark.parametrize(("file", "before", "after"), FAULTS)
def test_a_fault_can_be_sown(file, before, after):
    assert (ROOT / "csrc" / file).read_text().count(before) == 1
    assert before != after
