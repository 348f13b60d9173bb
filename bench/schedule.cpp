// schedule.cpp: the tasks that a call would have, by the schedule of csrc, for schedule.py.
#include "../csrc/schedule.h"

#include <algorithm>
#include <chrono>
#include <cstdint>

using namespace gqa;

namespace {

// Query i of a sequence attends the keys before end(i).
struct Queries {
  int64_t count, keys;
  bool causal;
  int64_t end(int64_t i) const { return causal ? keys - count + i + 1 : keys; }
};

Work work_of(const Queries& q, int64_t group) {
  Work work{};
  work.rows = q.count * group;
  work.last_key = q.end(q.count - 1);
  work.attended = double(q.end(0) + q.end(q.count - 1)) / 2;
  return work;
}

}  // namespace

// What one task amounts to.
struct TaskCost {
  double scores;          // of rows with keys
  double keys;            // that are read
  int64_t unit, parts;    // parts: of its unit
  double state_elements;  // of one part's state
};

// Fills `costs`, if it has room for all tasks, in the order in which threads take them; returns how many there are, and
// how many threads are started.
extern "C" int64_t tasks_of(int64_t sequences, const int64_t* queries, const int64_t* keys, int causal,
                            const int64_t* sizes, int threads, TaskCost* costs, int64_t room, int* started) {
  const int64_t kv_heads = sizes[0], group = sizes[1], head_dim = sizes[2], tile_rows = sizes[3];
  const auto queries_of = [&](int64_t i) { return Queries{queries[i], keys[i], causal != 0}; };
  const Schedule schedule(
      sequences, [&](int64_t i) { return work_of(queries_of(i), group); }, {kv_heads, head_dim, head_dim, 4, tile_rows},
      threads);
  *started = schedule.threads();
  if (schedule.tasks() > room) return schedule.tasks();
  for (int64_t id = 0; id < schedule.tasks(); id++) {
    const Place place = schedule.place(id);
    const Cut& cut = *place.cut;
    const Queries q = queries_of(cut.sequence);
    const int64_t split = cut.work.split_keys(), first = place.split_begin * split;
    TaskCost& cost = costs[id];
    cost = {};
    for (int64_t row = place.row_begin; row < place.row_end; row++)
      cost.scores += double(std::max<int64_t>(0, std::min(place.split_end * split, q.end(row / group)) - first));
    cost.keys =
        double(std::max<int64_t>(0, std::min(place.split_end * split, q.end((place.row_end - 1) / group)) - first));
    cost.unit = place.unit;
    cost.parts = cut.parts;
    cost.state_elements = double(place.row_end - place.row_begin) * double(head_dim + 2);
  }
  return schedule.tasks();
}

// Microseconds to start and end a parallel region of `threads` threads that do nothing.
extern "C" double region_us(int threads) {
  double best = 1e9;
  for (int round = 0; round < 2000; round++) {
    const auto start = std::chrono::steady_clock::now();
#pragma omp parallel num_threads(threads)
    { asm volatile("" ::: "memory"); }
    best = std::min(best, std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}
