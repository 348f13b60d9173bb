"""The benchmark: its table is sound, results are checked, reports and comparisons say what the numbers say."""

import copy
import json
import runpy
import subprocess
import sys

import numpy as np
import pytest

from repository import ROOT

BENCH = ROOT / "bench"
sys.path.append(str(BENCH))

import limits  # noqa: E402
import report  # noqa: E402
import results  # noqa: E402
import schedule  # noqa: E402
import workloads  # noqa: E402
from peers import PEERS, Unsupported, adapter, pytorch  # noqa: E402
from workloads import WORKLOADS, Workload  # noqa: E402

compare = runpy.run_path(str(BENCH / "compare.py"))["compare"]
needs_compiler = pytest.mark.skipif(limits.compiler() is None, reason="no C++ compiler")
SMALL = [
    Workload("causal", (4, 2, 16), 5, 5, causal=True),
    Workload("chunk", (4, 2, 16), 3, 9, causal=True, batch=2),
    Workload("full", (6, 2, 8), 4, 7, dtype="float16"),
    Workload("decode", (8, 1, 32), 1, 33, dtype="bfloat16"),
    Workload("quantised", (8, 2, 32), 1, 33, cache="int8"),
    Workload("backward", (4, 2, 16), 5, 5, causal=True, batch=2, backward=True),
    Workload("backward full", (4, 4, 16), 37, 37, dtype="float16", backward=True),
]


def test_workloads_have_different_names():
    assert len({workload.name for workload in WORKLOADS}) == len(WORKLOADS)


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_workloads_are_attention(workload):
    query_heads, kv_heads, _ = workload.heads
    assert query_heads % kv_heads == 0
    assert not workload.causal or workload.queries <= workload.keys
    assert not workload.backward or (workload.queries == workload.keys and not workload.cache)


def test_operations_count_what_the_mask_leaves():
    for workload in SMALL:
        mask = workload.mask()
        scores = workload.queries * workload.keys if mask is None else mask.sum()
        products = 5 if workload.backward else 2
        assert workload.flops == products * 2 * workload.batch * workload.heads[0] * workload.heads[2] * scores


def test_bytes_are_those_of_the_buffers():
    for workload in SMALL:
        _, k, v = workload.inputs(0)
        scales = 2 * workload.batch * workload.heads[1] * workload.keys * 4
        expected = k.size + v.size + scales if workload.cache else k.nbytes + v.nbytes
        assert workload.kv_bytes == expected


@pytest.fixture
def torch_as_it_was():
    """The benchmark leaves PyTorch in inference mode, which is no other test's business."""
    yield
    pytorch.held.close()
    pytorch.library.cache_clear()


@pytest.mark.usefixtures("torch_as_it_was")
@pytest.mark.parametrize("peer", ["gqa", "NumPy", "torch enable_gqa", "torch expanded", "JAX"])
@pytest.mark.parametrize("workload", SMALL, ids=lambda workload: workload.name)
def test_peers_agree_with_float64(workload, peer):
    if peer == "JAX" and workload.dtype == "float16":
        pytest.skip("XLA has no such products of float16 on CPUs")
    inputs = workload.inputs(1)
    try:
        call = adapter(peer, workload)(workload, inputs, 1)
    except ModuleNotFoundError as e:
        pytest.skip(f"{e.name} is not installed")
    except Unsupported:
        assert peer != "gqa"
        assert workload.cache or (workload.backward and peer == "NumPy") or (workload.group == 1 and "expanded" in peer)
        return
    expected = workloads.reference(workload, inputs)
    assert workloads.error(call.output(call.run()), expected, workload.queries) < workload.tolerance


def test_a_wrong_result_is_seen():
    workload = SMALL[0]
    inputs = workload.inputs(1)
    expected = workloads.reference(workload, inputs)
    right = PEERS["gqa"](workload, inputs, 1).run()
    wrong = right.copy()
    wrong[0, -1, -1, 0] += 1
    assert workloads.error(wrong, expected, workload.queries) == pytest.approx(1, abs=1e-5)
    wrong[0, -1, -1, 0] = np.nan
    assert workloads.error(wrong, expected, workload.queries) == np.inf
    assert workloads.error(right[:, :1], expected, workload.queries) == np.inf


@needs_compiler
def test_limits_are_rates():
    measured = limits.Limits("baseline", 2).measure(1 << 20)
    assert measured.flops > 0
    assert set(measured.reads) == set(limits.STREAMS)
    assert all(0 < rate < np.inf for rate in measured.reads.values())


def example(seconds):
    """A result in which gqa took `seconds` where the limit was 1."""
    row = {"name": "decode", "isa": "avx2", "flops": 10, "kv_bytes": 100, "overhead": False, "copies": 1}
    row["absent"] = {"JAX": "wrong by 1e+00"}
    row["rates"] = [[{"flops": 100.0, "reads": {"1": 50.0, "4": 100.0}}, True]] * 2
    turns = [[seconds, True], [9.0, False], [seconds, True]]
    row["peers"] = {"gqa": {"error": 1e-7, "turns": turns}, "NumPy": {"error": 2e-7, "turns": [[6.0, True]] * 2}}
    results.summarise(row)
    machine = {"cpu": "a CPU", "date": "2024-01-01"}
    return {"machine": machine, "versions": {}, "runs": [{"threads": 1, "isa": "avx2", "workloads": [row]}]}


def test_a_summary_takes_calm_turns_and_the_best_streams():
    (row,) = example(2.0)["runs"][0]["workloads"]
    assert (row["bound"], row["limit"], row["streams"], row["noisy"]) == ("memory", 1.0, "4", False)
    assert (row["peers"]["gqa"]["seconds"], row["peers"]["gqa"]["percent"]) == (2.0, 50.0)
    assert row["peers"]["NumPy"]["ratio"] == 3.0


def test_a_row_without_calm_turns_is_noisy():
    row = copy.deepcopy(example(2.0)["runs"][0]["workloads"][0])
    row["peers"]["NumPy"]["turns"] = [[5.0, False], [6.0, False], [7.0, False]]
    results.summarise(row)
    assert row["noisy"]
    assert row["peers"]["NumPy"]["seconds"] == 6.0


def test_the_report_sets_gqa_beside_its_fastest_peer():
    result = example(2.0)
    text = report.markdown(result)
    assert "| decode | 2 s | 0.0 GB/s | 50 % memory | NumPy | 6 s | 17 % memory | 3.00x | 1e-07 |" in text
    assert "- JAX in 1 of 1: wrong by 1e+00" in text
    assert "| decode | 2 s | 50 % memory | NumPy | 3.00x |" in report.markdown(result, compact=True)


def test_float32_is_no_rival_of_smaller_types():
    result = example(2.0)
    (row,) = result["runs"][0]["workloads"]
    row["peers"]["gqa float32"] = {"error": 1e-7, "turns": [[3.0, True]] * 2}
    results.summarise(row)
    assert results.rival(row) == "NumPy"
    assert "| decode | 2 s | 3 s | 1.50x |" in report.markdown(result)


def test_a_plot_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    report.plot(example(2.0), tmp_path / "roofline.svg")
    assert "GFLOP/s" in (tmp_path / "roofline.svg").read_text()


def test_a_comparison_flags_what_became_slower():
    text, worse = compare(example(2.0), example(2.5), tolerance=1.1)
    assert worse
    assert "| decode | 1 | avx2 | 1.25 | slower |" in text
    assert not compare(example(2.0), example(2.1), tolerance=1.1)[1]
    assert "faster" in compare(example(2.0), example(1.5), tolerance=1.1)[0]
    failed = example(2.0)
    del failed["runs"][0]["workloads"][0]["peers"]["gqa"]
    assert compare(example(2.0), failed, tolerance=1.1)[1]


@needs_compiler
def test_a_run_writes_all_that_the_report_needs(tmp_path):
    out = tmp_path / "results.json"
    options = ["--only=tiny", "--peers=^(gqa|NumPy|JAX)$", "--rounds=1", "--slot=0.001", f"--out={out}"]
    subprocess.run([sys.executable, BENCH / "run.py", *options], check=True, capture_output=True)
    (run,) = json.loads(out.read_text())["runs"]
    assert [set(row["peers"]) | set(row["absent"]) for row in run["workloads"]] == [{"gqa", "NumPy", "JAX"}] * 2
    command = [sys.executable, BENCH / "compare.py", out, out]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.count("1.00") == 2


def test_builds_are_different_modules():
    """A build compared with itself: three packages, each with an extension and a state of its own."""
    script = f"""
import sys
sys.path.insert(0, {str(BENCH)!r})
import builds, tempfile, pathlib, gqa
into = tempfile.mkdtemp()
sys.path.insert(0, into)
folder = pathlib.Path(gqa.__path__[0]).parent
a, b = (builds.load(folder, name, pathlib.Path(into)) for name in ("gqa_a", "gqa_b"))
from gqa_a import _core
import gqa_b, numpy as np
before = gqa_b.info()["threads"]
a.set_num_threads(before + 1)
assert (a.info()["threads"], b.info()["threads"]) == (before + 1, before)
x = np.ones((1, 1, 4, 8), np.float32)
assert type(b.quantize(x)).__module__ == "gqa_b.quantization"
assert (b.attention(x, b.quantize(x), b.quantize(x)) == a.attention(x, a.quantize(x), a.quantize(x))).all()
try:
    a.attention(x, b.quantize(x), x)
except TypeError:
    print("done")
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "done\n"


@needs_compiler
def test_simulated_schedule(tmp_path):
    """Its tasks are all of the work; one thread takes as long as they do together, and several share it."""
    core = schedule.library(tmp_path)
    rates = schedule.Rates(score=1e-9, key=0, element=0, region=0)
    forward = [w for w in SMALL if not w.backward]
    for workload in (*forward, *(w for w in WORKLOADS if w.name in ("prefill 2048 32/8/128", "decode 32768 32/8/128"))):
        batch = schedule.Batch.of(workload)
        scores = workload.flops / (4 * workload.heads[2])
        for threads in (1, 2, 16):
            costs, started = schedule.tasks(core, batch, threads)
            assert sum(x.scores for x in costs) == scores
            assert started <= threads
            ends = schedule.finish_times(costs, started, rates, 64)
            assert sum(ends) == pytest.approx(scores * 1e-9)
            assert len(ends) == started
        if scores > 1e6:
            assert started == 16
            assert ends[-1] < 1.3 * scores * 1e-9 / 16
