"""How many threads calls use: what sets it, what limits it, and that as many start."""

import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import gqa
from child import PARALLEL, output_of, start

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")
CPUS = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
needs_openmp = pytest.mark.skipif(not gqa.info()["openmp"], reason="a build without OpenMP is serial")


@pytest.fixture(autouse=True)
def default_threads():
    yield
    gqa.set_num_threads(None)


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
    """CPUs that the cgroups of version 2 allow, or a large number. More of them: test_cgroup.py."""
    groups = re.findall(r"^0::(.*)$", Path("/proc/self/cgroup").read_text(), re.MULTILINE)
    own = Path("/sys/fs/cgroup", *(group.lstrip("/") for group in groups))
    limits = [1000]
    for folder in (own, *own.parents):
        if (folder / "cpu.max").exists():
            allowed, period = (folder / "cpu.max").read_text().split()
            limits += [] if allowed == "max" else [-(-int(allowed) // int(period))]
    return min(limits)


@needs_linux
@needs_openmp
def test_the_default_is_what_the_process_may_use():
    available = min(CPUS, quota())
    assert threads_with() == str(available)
    assert threads_with(OMP_NUM_THREADS="1") == "1"
    assert threads_with(OMP_NUM_THREADS="3") == str(min(3, quota()))
    one = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); import gqa; print(gqa.get_num_threads())"
    assert output_of(one) == "1"


@needs_linux
@needs_openmp
@pytest.mark.parametrize("value", ["99999999999", "2147483647", "1025", "nonsense", "-3", ""])
def test_what_cannot_be_meant_as_a_number_of_threads_is_the_default(value):
    available = min(CPUS, quota())
    assert threads_with(OMP_NUM_THREADS=value) == str(available)


@needs_linux
@needs_openmp
@pytest.mark.skipif(CPUS < 2, reason="needs two CPUs")
def test_a_change_of_affinity_is_followed():
    code = f"""
        import os
        cpus = sorted(os.sched_getaffinity(0))
        def allow(n):
            os.sched_setaffinity(0, cpus[:n])
        {{before}}
        {PARALLEL.replace(chr(10), chr(10) + " " * 8)}
        def seen(n):
            allow(n)
            return gqa.get_num_threads()
        print(gqa.get_num_threads(), seen(1), seen(2), seen(1), seen(2))
        """
    two = str(min(2, quota()))
    assert output_of(code.format(before="allow(2)")).split() == [two, "1", two, "1", two]
    assert output_of(code.format(before="allow(1)")).split() == ["1", "1", two, "1", two]
    named = output_of(code.format(before="allow(1)"), OMP_NUM_THREADS="1")
    assert named.split() == ["1"] * 5
    named = output_of(code.format(before="allow(2)"), OMP_NUM_THREADS="3")
    assert named.split() == [str(min(3, quota())), "1", str(min(3, quota())), "1", str(min(3, quota()))]


@needs_linux
@needs_openmp
def test_calls_follow_a_change_of_affinity():
    """As soon as it was asked for; at the latest with the next tick of the system's clock."""
    one = f"import os; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}})"
    assert threads_started(f"{one}; gqa.get_num_threads(); call(None)") == 0
    assert threads_started(f"gqa.get_num_threads(); {one}; time.sleep(0.1); call(None)") == 0


def test_the_environment_sets_the_number():
    assert threads_with(GQA_NUM_THREADS="3", OMP_NUM_THREADS="1") == "3"
    assert threads_with(GQA_NUM_THREADS="", OMP_NUM_THREADS="1") == "1"


@pytest.mark.parametrize("value", ["0", "-1", "two", " ", "0x2"])
def test_a_wrong_number_in_the_environment_is_an_error(value):
    result = start("import gqa", GQA_NUM_THREADS=value)
    assert result.returncode == 1
    assert f"ValueError: GQA_NUM_THREADS is {value!r}, expected an integer of at least 1" in result.stderr


def test_threadpoolctl_sees_where_the_limit_is_kept():
    pytest.importorskip("threadpoolctl")
    code = "import gqa, threadpoolctl; print(*(x['user_api'] for x in threadpoolctl.threadpool_info()))"
    assert ("openmp" in output_of(code).split()) == gqa.info()["openmp"]


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
    count = 'import time; count = lambda: int(open("/proc/self/status").read().split("Threads:")[1].split()[0])'
    return int(output_of(f"{PARALLEL}\n{count}\nbefore = count()\n{call}\nprint(count() - before)", **environment))


@needs_linux
@needs_openmp
def test_a_call_starts_the_threads_it_was_given():
    assert threads_started("call(1)") == 0
    assert threads_started("call(3)") == 2
    assert threads_started("call(None)", GQA_NUM_THREADS="2") == 1
    assert threads_started("call(None)", OMP_NUM_THREADS="1") == 0


@needs_linux
def test_calls_at_the_same_time_share_threads():
    at_once = """
import threading
callers = [threading.Thread(target=lambda: [call(3) for _ in range(20)]) for _ in range(4)]
for x in callers: x.start()
for x in callers: x.join()
for _ in range(200):  # until the system has let go of the callers
    if count() - before > 2: time.sleep(0.01)
"""
    assert threads_started(at_once) == 2


@needs_linux
def test_where_no_thread_can_be_started_the_others_do_all():
    """Room in memory for the stacks of a few threads, and for what the tasks of eight need."""
    done = output_of(
        f"""{PARALLEL}
import resource
expected = call(1)
status = lambda name: int(open("/proc/self/status").read().split(name + ":")[1].split()[0])
before, stack = status("Threads"), resource.getrlimit(resource.RLIMIT_STACK)[0]
resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") * 1024 + 3 * stack + stack // 2,) * 2)
print(call(8) == expected, status("Threads") - before < 7)
""",
    )
    assert done == "True True"


@needs_linux
@needs_openmp
def test_rotary_starts_the_threads_that_its_size_is_worth():
    tables = "cos, sin = gqa.rotary_tables(4096, 64)"
    assert threads_started(f"{tables}; gqa.rotary(np.repeat(k, 8, 1), cos, sin, num_threads=3)") == 2
    assert threads_started(f"{tables}; gqa.rotary(np.repeat(k, 8, 1), cos, sin, num_threads=1)") == 0
    assert threads_started(f"{tables}; gqa.rotary(k[:, :, :64], cos, sin, num_threads=8)") == 0


@needs_linux
@needs_openmp
def test_a_small_call_starts_no_threads():
    assert threads_started("gqa.attention(q[:, :, :1], k[:, :, :16], v[:, :, :16], num_threads=8)") == 0
