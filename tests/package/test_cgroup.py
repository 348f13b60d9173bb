"""Quotas of control groups, in trees of files like those of the Linux kernel."""

import pytest

from program import built, output_of_run

NO_QUOTA = 1 << 20


@pytest.fixture(scope="module")
def quota_of(tmp_path_factory):
    """A function: the CPUs that cpu_quota finds, given lines of /proc/self/cgroup and files below /sys/fs/cgroup."""
    code = """
#include <cstdio>
#include "cgroup.h"
int main(int, char** arguments) {
  std::printf("%d", gqa::cpu_quota(arguments[1], arguments[2]));
}
"""
    program = built(tmp_path_factory.mktemp("program"), code, "cgroup.cpp")

    def quota_of(lines, files):
        folder = tmp_path_factory.mktemp("groups")
        (folder / "cgroup").write_text("".join(f"{line}\n" for line in lines))
        for name, text in files.items():
            path = folder / "mounts" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
        return int(output_of_run(program, folder / "cgroup", folder / "mounts"))

    return quota_of


def v1(folder, allowed, period=100000):
    return {f"{folder}/cpu.cfs_quota_us": str(allowed), f"{folder}/cpu.cfs_period_us": str(period)}


@pytest.mark.parametrize(
    ("group", "files", "cpus"),
    [
        ("/", {}, NO_QUOTA),
        ("/", {"cpu.max": "max 100000"}, NO_QUOTA),
        ("/", {"cpu.max": "150000 100000"}, 2),
        ("/", {"cpu.max": "1000 100000"}, 1),
        ("/", {"cpu.max": "100000 0"}, NO_QUOTA),
        ("/", {"cpu.max": ""}, NO_QUOTA),
        ("/", {"cpu.max": "nonsense"}, NO_QUOTA),
        ("/", {"cpu.max": "99999999999999999999 1"}, NO_QUOTA),
        ("/a/b", {"a/b/cpu.max": "100000 100000"}, 1),
        ("/a/b", {"a/cpu.max": "300000 100000"}, 3),
        ("/a/b", {"a/b/cpu.max": "400000 100000", "a/cpu.max": "200000 100000", "cpu.max": "max 100000"}, 2),
        ("/a/b", {"a/b/cpu.max": "max 100000", "cpu.max": "500000 100000"}, 5),
        ("/a/b", {"a/other/cpu.max": "100000 100000", "b/cpu.max": "100000 100000"}, NO_QUOTA),
        ("/not/mounted/here", {"cpu.max": "300000 100000"}, 3),
        ("/a b:c", {"a b:c/cpu.max": "200000 100000"}, 2),
        ("/../other", {"cpu.max": "300000 100000", "../other/cpu.max": "100000 100000"}, 3),
        ("/a/b", {"unified/a/cpu.max": "300000 100000"}, 3),
        ("", {"cpu.max": "300000 100000"}, 3),
    ],
)
def test_version_2(quota_of, group, files, cpus):
    assert quota_of([f"0::{group}"], files) == cpus


@pytest.mark.parametrize(
    ("line", "files", "cpus"),
    [
        ("4:cpu:/", {}, NO_QUOTA),
        ("4:cpu:/", v1("cpu", -1), NO_QUOTA),
        ("4:cpu:/", v1("cpu", 250000), 3),
        ("4:cpu,cpuacct:/a/b", v1("cpu,cpuacct/a/b", 100000), 1),
        ("4:cpuacct,cpu:/a/b", v1("cpuacct,cpu/a", 200000) | v1("cpuacct,cpu/a/b", -1), 2),
        ("4:cpu,cpuacct:/a", v1("cpu/a", 400000) | v1("cpu", 300000), 3),
        ("4:cpuacct:/a", v1("cpuacct/a", 100000) | v1("cpu/a", 100000), NO_QUOTA),
        ("4:cpu:/docker/1234", v1("cpu", 200000, 50000), 4),
    ],
)
def test_version_1(quota_of, line, files, cpus):
    others = ["9:memory:/m", "1:name=systemd:/s"]
    assert quota_of([*others, line], files | {"memory/m/cpu.max": "100000 100000"}) == cpus


def test_both_versions_and_no_file(quota_of):
    files = v1("cpu/a", 300000) | {"unified/b/cpu.max": "200000 100000"}
    assert quota_of(["4:cpu:/a", "0::/b"], files) == 2
    assert quota_of(["4:cpu:/a", "0::/c"], files) == 3
    assert quota_of([], files) == NO_QUOTA
    assert quota_of(["", "nonsense", "0:", "::"], files) == NO_QUOTA
