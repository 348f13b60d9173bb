"""Threads and instruction sets: what chooses them, that the chosen ones run, and that calls do not disturb each other."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import cases
import gqa
from child import output_of, start
from compare import assert_same_bits
from gqa import _core

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")
needs_openmp = pytest.mark.skipif(not gqa.info()["openmp"], reason="a build without OpenMP is serial")

# Enough work for several threads; one head, so that its keys are split among them.
PARALLEL = """
import numpy as np, gqa
q, k, v = np.random.default_rng(0).standard_normal((3, 1, 1, 4096, 64)).astype(np.float32)
q = np.repeat(q[:, :, :4], 4, axis=1)
def call(threads=4):
    return gqa.attention(q, k, v, num_threads=threads).tobytes()
"""


@pytest.fixture(autouse=True)
def default_threads():
    yield
    gqa.set_num_threads(None)


# ---- the number of threads ------------------------------------------------------------------------------------


def test_set_and_get():
    gqa.set_num_threads(3)
    assert gqa.get_num_threads() == 3
    assert gqa.info()["threads"] == 3
    gqa.set_num_threads(np.int64(2))
    assert gqa.get_num_threads() == 2
    gqa.set_num_threads(10**30)
    assert gqa.get_num_threads() >= 3
    gqa.set_num_threads(None)
    assert 1 <= gqa.get_num_threads() <= os.cpu_count()


@pytest.mark.parametrize(
    ("n", "error"),
    [(0, ValueError), (-1, ValueError), (-(10**30), ValueError), (1.0, TypeError), ("2", TypeError), (True, TypeError)],
)
def test_set_refuses(n, error):
    gqa.set_num_threads(2)
    with pytest.raises(error, match="n is"):
        gqa.set_num_threads(n)
    assert gqa.get_num_threads() == 2


def threads_with(**environment):
    return output_of("import gqa; print(gqa.get_num_threads())", **environment)


def quota():
    """CPUs that the cgroup allows, or a large number."""
    try:
        allowed, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except OSError:
        return 1000
    return 1000 if allowed == "max" else -(-int(allowed) // int(period))


@needs_linux
@needs_openmp
def test_the_default_is_what_the_process_may_use():
    available = min(len(os.sched_getaffinity(0)), quota())
    assert threads_with() == str(available)
    assert threads_with(OMP_NUM_THREADS="1") == "1"
    assert threads_with(OMP_NUM_THREADS="3") == str(min(3, quota()))
    one = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); import gqa; print(gqa.get_num_threads())"
    assert output_of(one) == "1"


def test_the_environment_sets_the_number():
    assert threads_with(GQA_NUM_THREADS="3", OMP_NUM_THREADS="1") == "3"
    assert threads_with(GQA_NUM_THREADS="", OMP_NUM_THREADS="1") == "1"


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "two", " ", "1 2", "0x2"])
def test_a_wrong_number_in_the_environment_is_an_error(value):
    result = start("import gqa", GQA_NUM_THREADS=value)
    assert result.returncode == 1
    assert f"ValueError: GQA_NUM_THREADS is {value!r}, expected an integer of at least 1" in result.stderr


@needs_openmp
def test_threadpoolctl_limits_the_default():
    pytest.importorskip("threadpoolctl")
    done = output_of(
        """
        import gqa, threadpoolctl
        print(gqa.get_num_threads())
        with threadpoolctl.threadpool_limits(1):
            print(gqa.get_num_threads())
        with threadpoolctl.threadpool_limits({"openmp": 2}):
            print(gqa.get_num_threads())
        """,
        OMP_NUM_THREADS="2",
    )
    most = min(2, quota())
    assert done.split() == [str(most), "1", str(most)]


def threads_started(call, **environment):
    """Threads of a process that appeared with a call."""
    count = 'count = lambda: int(open("/proc/self/status").read().split("Threads:")[1].split()[0])'
    return int(output_of(f"{PARALLEL}\n{count}\nbefore = count()\n{call}\nprint(count() - before)", **environment))


@needs_linux
@needs_openmp
def test_a_call_starts_the_threads_it_was_given():
    assert threads_started("call(1)") == 0
    assert threads_started("call(3)") == 2
    assert threads_started("call(None)", GQA_NUM_THREADS="2") == 1
    assert threads_started("call(None)", OMP_NUM_THREADS="1") == 0


@needs_linux
@needs_openmp
def test_a_small_call_starts_no_threads():
    assert threads_started("gqa.attention(q[:, :, :1], k[:, :, :16], v[:, :, :16], num_threads=8)") == 0


# ---- instruction sets -----------------------------------------------------------------------------------------


def bits_with(isa):
    """Results of both loops, and the set that says it computed them."""
    code = f"{PARALLEL}\nimport hashlib\nq = np.repeat(q, 5, axis=2)\nfew = gqa.attention(q[:, :1, :1], k, v)"
    return output_of(
        f"{code}\nprint(gqa.info()['isa'], hashlib.sha256(few).hexdigest(), hashlib.sha256(call()).hexdigest())",
        GQA_ISA=isa,
    )


def test_the_forced_instruction_set_runs():
    """Each adds in an order of its own, so their last bits differ where the right one runs, and agree with this process's."""
    isas = _core.available_isas()
    assert isas[-1] == "baseline"
    results = {isa: bits_with(isa).split() for isa in isas}
    assert [name for name, _, _ in results.values()] == isas
    assert len({few for _, few, _ in results.values()}) == len(isas)
    assert bits_with("").split() == results[isas[0]]
    if "avx2" in isas:
        assert results["avx2"][2] != results["baseline"][2]  # fused products, and separate ones


def test_the_instruction_set_can_be_changed(isa):
    assert _core.isa() == isa
    assert gqa.info()["isa"] == isa
    assert isa in gqa.info()["isas"]


@pytest.mark.parametrize("name", ["sse9", "AVX2", "native", "avx2,baseline", "avx512", "avx2"])
def test_an_unknown_or_unsupported_instruction_set_is_an_error(name):
    if name in _core.available_isas():
        pytest.skip("this machine has it")
    result = start("import gqa", GQA_ISA=name)
    assert result.returncode == 1
    assert (
        f"ValueError: GQA_ISA is '{name}'; available on this machine: {', '.join(_core.available_isas())}"
        in result.stderr
    )


def test_info():
    info = gqa.info()
    assert set(info) == {"version", "isa", "isas", "threads", "openmp"}
    assert info["version"] == gqa.__version__
    assert info["isas"] == _core.available_isas()
    assert isinstance(info["openmp"], bool)


# ---- calls at the same time -----------------------------------------------------------------------------------


def test_concurrent_calls():
    """Python threads with sizes, dtypes and numbers of threads of their own get the results that each gets alone."""
    chosen = cases.LONG + cases.WITH_OPTIONS[::9] + cases.EMPTY[:3]
    arguments = [case.arguments(dtype) for case in chosen for dtype in (np.float32, np.float16)]
    expected = [gqa.attention(**a) for a in arguments]

    def work(seed):
        for i in np.random.default_rng(seed).permutation(len(arguments)):
            assert_same_bits(gqa.attention(**arguments[i], num_threads=1 + (seed + i) % 3), expected[i])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(12)))


def test_the_interpreter_runs_on_during_a_call():
    q = np.ones((1, 8, 1024, 64), np.float32)
    worker = threading.Thread(target=lambda: [gqa.attention(q, q, q, num_threads=1) for _ in range(5)])
    turns = 0
    worker.start()
    while worker.is_alive():
        turns += 1
    assert turns > 1000  # a held lock would leave a turn or two between calls


def test_a_change_of_instruction_set_during_calls():
    arguments = cases.LONG[2].arguments(np.float32)
    expected = set()
    before = _core.isa()
    for isa in _core.available_isas():
        _core.use_isa(isa)
        expected.add(gqa.attention(**arguments).tobytes())
    try:
        with ThreadPoolExecutor(2) as pool:
            calls = [pool.submit(gqa.attention, **arguments, num_threads=2) for _ in range(50)]
            for i in range(50):
                _core.use_isa(_core.available_isas()[i % len(_core.available_isas())])
            assert {call.result().tobytes() for call in calls} <= expected
    finally:
        _core.use_isa(before)


# ---- fork -----------------------------------------------------------------------------------------------------

FORK = """
import os, sys, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of forking a process with threads, which is what is tested

def child(work):
    "Runs work in a child; the exit status of this process is 1 if that fails or hangs."
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    if os.waitpid(pid, 0)[1] != 0:
        sys.exit(1)

def check():
    assert call() == expected and call(1) == expected
"""
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


@needs_fork
@pytest.mark.parametrize(
    "code",
    [
        "expected = call(); child(check)",
        "expected = call(1); child(check); check(); child(check); check()",
        "expected = call(); child(lambda: child(check))",
        "expected = call(); child(lambda: [check() for _ in range(20)])",
        """
def run(f):
    t = threading.Thread(target=f); t.start(); t.join()
expected = call(); run(check); child(lambda: (run(check), check())); run(lambda: child(check)); check()
""",
        """
expected = call(); stop = False
def busy():
    while not stop: call()
threads = [threading.Thread(target=busy) for _ in range(2)]
for t in threads: t.start()
for _ in range(5): child(check)
stop = True
for t in threads: t.join()
""",
    ],
    ids=[
        "after a parallel call",
        "after serial calls",
        "a child of a child",
        "many calls",
        "with Python threads",
        "during calls",
    ],
)
def test_fork(code):
    output_of(f"{PARALLEL}\n{FORK}\n{code}\nprint('done')", timeout=120)


@needs_fork
def test_a_pool_of_forked_processes():
    done = output_of(
        f"""{PARALLEL}
import multiprocessing, warnings
warnings.simplefilter("ignore", DeprecationWarning)
expected = call()
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(all(result == expected for result in pool.map(call, [1, 2, 4, 2])))
""",
        timeout=120,
    )
    assert done == "True"
