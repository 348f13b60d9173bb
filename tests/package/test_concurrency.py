"""Calls from several Python threads at once, and in processes that fork, get the results that each gets alone."""

import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import cases
import gqa
from child import PARALLEL, output_of
from compare import assert_same_bits


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
    q = np.ones((1, 8, 2048, 64), np.float32)
    turns = 0
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(gqa.attention, q, q, q, num_threads=1)
        while not call.done():
            time.sleep(0.001)
            turns += 1
    assert turns > 5  # a call that held the lock would leave a turn before it and one after it


OTHERS = {
    "sklearn": """
from sklearn.metrics import pairwise_distances_argmin
x = np.random.default_rng(1).standard_normal((512, 32))
def other():
    return pairwise_distances_argmin(x, x[:64]).tobytes()
""",
    "torch": """
import torch
x = torch.ones(64, 4096)
def other():
    return torch.nn.functional.gelu(x).numpy().tobytes()
""",
    "numpy": """
x = np.random.default_rng(1).standard_normal((256, 512))
def other():
    return (x @ x.T).tobytes()
""",
}


@pytest.mark.parametrize("other", OTHERS)
def test_threads_of_other_libraries_in_the_process(other):
    """Calls that take turns with theirs, and at the same time."""
    pytest.importorskip(other)
    done = output_of(
        f"""{PARALLEL}
{OTHERS[other]}
from concurrent.futures import ThreadPoolExecutor
expected, others = call(1), other()
turns = [(call(2), other(), call(4)) for _ in range(30)]
with ThreadPoolExecutor(2) as pool:
    mine, theirs = ([pool.submit(f) for _ in range(30)] for f in (call, other))
    results = [x.result() for x in mine]
print(all(turn == (expected, others, expected) for turn in turns), set(results) == {{expected}})
"""
    )
    assert done == "True True"


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs signals")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_signal_ends_a_long_call(threads):
    """What its handler raises comes out of the call; later calls are not touched."""
    done = output_of(
        f"""
import signal
import numpy as np, gqa
q = np.ones((1, 16, 32768, 64), np.float32)
out = np.full_like(q, 7)
def handle(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.3)
try:
    gqa.attention(q, q, q, out=out, num_threads={threads})
except KeyboardInterrupt:
    print("interrupted", (out[0, -1, :8] == 7).all())
few = q[:, :, :8]
print((gqa.attention(few, few, few, num_threads={threads}) == 1).all())
"""
    )
    assert done.split() == ["interrupted", "True", "True"]


def test_a_handler_that_raises_nothing_ends_no_call():
    done = output_of(
        """
import signal
import numpy as np, gqa
q = np.ones((1, 8, 4096, 64), np.float32)
expected, seen = gqa.attention(q, q, q).tobytes(), []
signal.signal(signal.SIGALRM, lambda *_: seen.append(1))
signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
print(gqa.attention(q, q, q, num_threads=1).tobytes() == expected)
signal.setitimer(signal.ITIMER_REAL, 0)
"""
    )
    assert done == "True"


# For code that runs in a process of its own.
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


FORKS = {
    "after a parallel call": "expected = call(); child(check)",
    "after serial calls": "expected = call(1); child(check); check(); child(check); check()",
    "a child of a child": "expected = call(); child(lambda: child(check))",
    "many calls": "expected = call(); child(lambda: [check() for _ in range(20)])",
    "with Python threads": """
def run(f):
    t = threading.Thread(target=f); t.start(); t.join()
expected = call(); run(check); child(lambda: (run(check), check())); run(lambda: child(check)); check()
""",
    "during calls": """
expected = call(); stop = False
def busy():
    while not stop: call()
threads = [threading.Thread(target=busy) for _ in range(2)]
for t in threads: t.start()
for _ in range(5): child(check)
stop = True
for t in threads: t.join()
""",
}


@needs_fork
@pytest.mark.parametrize("name", FORKS)
def test_fork(name):
    output_of(f"{PARALLEL}\n{FORK}\n{FORKS[name]}")


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
    )
    assert done == "True"


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_pool_of_new_processes(method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    done = output_of(
        f"""
import multiprocessing
import numpy as np
import gqa
arrays = [np.random.default_rng(0).standard_normal((2, 4, 300, 32)).astype(np.float32)] * 3
expected = gqa.attention(*arrays)
with multiprocessing.get_context("{method}").Pool(2) as pool:
    results = pool.starmap(gqa.attention, [arrays] * 4)
print(all(np.array_equal(result, expected) for result in results))
"""
    )
    assert done == "True"
