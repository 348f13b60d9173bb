"""How calls are cut, dealt out and put together again: plan, schedule and merge tree, without a kernel."""

import itertools
import json

import numpy as np
import pytest

from program import output_of_program

SCHEDULES = """
#include <cstdio>
#include <vector>
#include "schedule.h"

// For each call on standard input, threads, KV heads, head_dim, the number of works and each one's rows, first and last
// key: a line of JSON.
int main() {
  long long threads, heads, head_dim, count;
  while (std::scanf("%lld %lld %lld %lld", &threads, &heads, &head_dim, &count) == 4) {
    std::vector<gqa::Work> works;
    for (int i = 0; i < count; i++) {
      long long rows, first, last;
      if (std::scanf("%lld %lld %lld", &rows, &first, &last) != 3) return 1;
      works.push_back({rows, first, last, double(last - first)});
    }
    const gqa::Schedule schedule(count, [&](int64_t i) { return works[i]; }, {heads, head_dim, head_dim, 4, 32},
                                 int(threads));
    std::printf("{\\"threads\\": %d, ", schedule.threads());
    std::printf("\\"units\\": %lld, \\"tasks\\": [", (long long)schedule.units());
    for (int64_t id = 0; id < schedule.tasks(); id++) {
      const gqa::Place p = schedule.place(id);
      std::printf("%s[%lld, %lld, %lld, %lld, %lld, %lld, %lld, %lld, %lld, %lld]", id ? ", " : "",
                  (long long)p.cut->sequence, (long long)p.kv_head, (long long)p.row_begin, (long long)p.row_end,
                  (long long)p.split_begin, (long long)p.split_end, (long long)p.unit, (long long)p.part,
                  (long long)p.cut->parts, (long long)p.cut->splits_per_part);
    }
    std::printf("]}\\n");
  }
}
"""

TREES = """
#include <algorithm>
#include <cstdio>
#include <string>
#include "kernels/merge_tree.h"

struct States {
  std::string* text;
  void merge(const States& later) const { *text = "(" + *text + " " + *later.text + ")"; }
};

// The splits from begin to end, those of each subtree of 2^level splits merged first; and the most that ever waited.
void print(long long begin, long long end, long long level) {
  using Tree = gqa::test::MergeTree<States>;
  static std::string texts[4096], parts[4096];
  Tree all;
  int most = 0, part = 0;
  for (long long number = begin >> level; number <= (end - 1) >> level; number++, part++) {
    Tree tree;
    for (long long s = std::max(begin, number << level); s < std::min(end, (number + 1) << level); s++) {
      texts[s - begin] = std::to_string(s);
      tree.add({&texts[s - begin]}, s);
      most = std::max(most, tree.waiting());
    }
    parts[part] = *tree.total().text;
    all.add({&parts[part]}, number);
  }
  std::printf("%s|%d|%d\\n", all.total().text->c_str(), most, Tree::depth(end - begin));
}

int main() {
  long long begin, end, level;
  while (std::scanf("%lld %lld %lld", &begin, &end, &level) == 3) print(begin, end, level);
}
"""


@pytest.fixture(scope="module")
def schedules(tmp_path_factory):
    """A function from calls (threads, KV heads, head_dim, works of (rows, first key, last key)) to their schedules."""

    def run(calls):
        lines = (f"{t} {h} {d} {len(w)} {' '.join(str(n) for work in w for n in work)}" for t, h, d, w in calls)
        folder = tmp_path_factory.mktemp("schedules")
        printed = output_of_program(folder, SCHEDULES, "schedule.cpp", input="\n".join(lines))
        return [json.loads(line) for line in printed.splitlines()]

    return run


def random_calls(rng, count):
    for _ in range(count):
        works = []
        for _ in range(rng.integers(1, 6)):
            first = int(rng.integers(0, 5000)) if rng.random() < 0.5 else 0
            keys = int(rng.choice([0, 1, 700, 768, 769, 6144, 6145, 20000, 300000]))
            works.append((int(rng.choice([0, 1, 4, 23, 24, 63, 64, 65, 700, 1024, 5000])), first, first + keys))
        threads, heads, head_dim = (int(rng.choice(n)) for n in ([1, 2, 3, 8, 64], [1, 2, 8, 32], [16, 64, 128, 576]))
        yield threads, heads, head_dim, works


def test_every_row_meets_every_split_once(schedules, rng):
    """For any number of threads: each row of each KV head and each split that holds its keys are in one task."""
    calls = list(random_calls(rng, 300))
    for (threads, heads, _, works), schedule in zip(calls, schedules(calls)):
        assert 1 <= schedule["threads"] <= threads
        assert schedule["threads"] <= max(1, len(schedule["tasks"]))
        covered = [np.zeros((heads, rows, 0), int) for rows, _, _ in works]
        spans = []
        for i, (rows, first, last) in enumerate(works):
            size = 768 if rows < 24 else 1536 if rows < 64 else 6144
            spans.append((first // size, max(first // size + 1, -(-last // size))))
            covered[i] = np.zeros((heads, min(rows, 5000), spans[i][1] - spans[i][0]), int)
        for sequence, head, row_begin, row_end, split_begin, split_end, *_ in schedule["tasks"]:
            begin, end = spans[sequence]
            assert begin <= split_begin < split_end <= end
            covered[sequence][head, row_begin:row_end, split_begin - begin : split_end - begin] += 1
        assert all((x == 1).all() for x in covered)


def test_parts_are_aligned_subtrees(schedules, rng):
    """The parts of a unit follow one another, each the splits of one aligned subtree; all parts of it have one unit."""
    calls = list(random_calls(rng, 300))
    several = 0
    for schedule in schedules(calls):
        by_unit = itertools.groupby(schedule["tasks"], key=lambda task: task[6])
        units = [(unit, list(tasks)) for unit, tasks in by_unit]
        assert [unit for unit, _ in units] == list(range(schedule["units"]))
        for _, tasks in units:
            parts, size = tasks[0][8:]
            assert len(tasks) == parts
            assert [task[7] for task in tasks] == list(range(parts))
            assert size & size - 1 == 0
            for before, after in itertools.pairwise(tasks):
                assert before[:4] == after[:4]
                assert before[5] == after[4]
                assert after[4] % size == 0
            assert tasks[0][4] // size == (tasks[0][5] - 1) // size
            several += parts > 1
    assert several > 50


def test_threads_have_work(schedules):
    """One sequence of few rows feeds all threads, beside short ones as well; many small ones are not cut."""
    long, short, many = schedules(
        [
            (16, 1, 128, [(4, 0, 300_000)]),
            (8, 1, 128, [(4, 0, 100_000), *[(4, 0, 500)] * 40]),
            (4, 8, 128, [(4, 0, 4096)] * 16),
        ]
    )
    assert long["threads"] == 16
    assert 16 * 4 <= len(long["tasks"]) <= 16 * 32
    assert {task[0] for task in short["tasks"][:64]} == {0}  # the long one first, and in parts
    assert sum(task[0] == 0 for task in short["tasks"]) >= 8 * 4
    assert len(many["tasks"]) == 16 * 8


def test_little_work_stays_on_one_thread(schedules):
    (small,) = schedules([(64, 2, 32, [(2, 0, 16)])])
    assert small["threads"] == 1


def balanced(begin, end):
    """The tree over the splits [begin, end) by its definition: halves of the smallest aligned subtree around them."""
    if end - begin == 1:
        return str(begin)
    size = 1
    while begin // size != (end - 1) // size:
        size *= 2
    middle = (begin // size) * size + size // 2
    return f"({balanced(begin, middle)} {balanced(middle, end)})"


def test_splits_merge_as_a_balanced_tree_whatever_the_parts(tmp_path):
    spans = ((0, 1), (0, 7), (0, 64), (1, 2), (1, 4), (3, 8), (5, 22), (31, 97), (1000, 1391))
    problems = [(begin, end, level) for begin, end in spans for level in (0, 1, 3)]
    text = "\n".join(" ".join(map(str, problem)) for problem in problems)
    printed = output_of_program(tmp_path, TREES, options=["-DGQA_ISA=test"], input=text)
    for (begin, end, _), line in zip(problems, printed.splitlines(), strict=True):
        tree, most, depth = line.split("|")
        assert tree == balanced(begin, end)
        assert int(most) <= int(depth)
