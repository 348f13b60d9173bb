// program.h: score programs run by an interpreter: one dispatch for an operation and a strip of scores.
//
// Values of each rate are computed where they first can be: those of a call once for a task, of rows once for a tile of
// rows, of keys once for a block of keys, whatever tiles come; what is left are operations on vectors of scores. Strips
// are so short that their registers stay in L1.
#pragma once

#include "operations.h"
#include "scratch.h"

namespace gqa {
namespace GQA_ISA {
namespace {

constexpr int64_t strip_bytes = 12 << 10;  // of all registers

// What a task needs to run a program.
template <class T> struct ProgramMemory {
  static constexpr int w = width<T>;

  // tiles: of rows, of `vectors` each, whose values are kept at a time; blocks: of keys, in up to `block_steps` steps.
  ProgramMemory(const ProgramPlan* program, int64_t tiles, int vectors, int blocks, int block_steps, Scratch& scratch)
      : plan(program) {
    if (!plan) return;
    steps = block_steps;
    row_size = plan->row_slots * vectors * w;
    key_size = int64_t(plan->key_slots) * steps * w;
    const int64_t step_size = int64_t(plan->registers) * vectors * w;
    strip = int(step_size == 0 ? steps : max(1, min(steps, strip_bytes / (step_size * int64_t(sizeof(T))))));
    calls = scratch.take<T>(plan->call_slots * w);
    rows = scratch.take<T>(tiles * row_size);
    keys = scratch.take<T>(blocks * key_size);
    registers = scratch.take<T>(step_size * strip);
  }

  T* rows_of(int64_t tile) const { return rows + tile * row_size; }
  T* keys_of(int64_t block) const { return keys + block * key_size; }

  const ProgramPlan* plan;
  int steps = 0, strip = 0;  // strip: steps that a list takes at a time
  int64_t row_size = 0, key_size = 0;
  T *calls = nullptr, *registers = nullptr;  // [slot][lane]; [register][step][vector][lane]
  T *rows = nullptr, *keys = nullptr;        // [tile][slot][vector][lane]; [block][slot][step][lane]
};

// Runs the program of one task; coordinates are those of score_block.h.
template <class T> class ProgramRunner {
  static constexpr int w = width<T>;

 public:
  ProgramRunner(const Attention& a, const Sequence& sequence, int64_t kv_head, const ProgramMemory<T>& memory)
      : a_(a), sequence_(sequence), group_(a.query_heads / a.kv_heads), first_head_(kv_head * group_), memory_(memory) {
    if (memory.plan) compute_calls();
  }

  // The values of N vectors of rows.
  template <int N, class Coordinates> void load_rows(const Coordinates& coordinates, T* rows) const {
    Int<T> h[N * w], q_idx[N * w];
    for (int l = 0; l < N * w; l++) {
      const int64_t row = coordinates.row(l);
      h[l] = nearest_whole<T>(first_head_ + row % group_);
      q_idx[l] = nearest_whole<T>(sequence_.origin + sequence_.offset + row / group_);
    }
    compute_rows<N>(h, q_idx, rows);
  }

  // The values of the keys that `steps` steps have, from key `begin` on.
  template <class Coordinates> void load_keys(const Coordinates& coordinates, int64_t begin, int steps, T* keys) const {
    constexpr int phases = Coordinates::phases;
    Int<T> first[phases * w];
    for (int phase = 0; phase < phases; phase++)
      for (int l = 0; l < w; l++)
        first[phase * w + l] = nearest_whole<T>(sequence_.origin + begin + coordinates.first_key(phase, l));
    compute_keys(first, phases, steps, keys);
  }

  // Computes the outputs of `goal` for the scores of steps [from, to) at s, `stride` elements from step to step, and
  // calls end(t, n, places) for each strip of n steps from t on, with the place of every output. first_key: the step of
  // `keys` that is step 0 here.
  template <int N, class F>
  void run(int goal, int from, int to, T* s, int64_t stride, const T* rows, const T* keys, int first_key, F end) const {
    const StepList& list = memory_.plan->full[goal];
    Bases bases;
    bases.rows = const_cast<T*>(rows), bases.stride = stride;
    for (int t = from; t < to; t += memory_.strip) {
      const int n = int(min(memory_.strip, to - t));
      bases.keys = const_cast<T*>(keys) + int64_t(first_key + t) * w;
      bases.s = s + t * stride;
      compute_scores<N>(list, n, bases);
      Place<T> results[outputs] = {};
      for (int o = 0; o < outputs; o++)
        if (goal >> o & 1) results[o] = place<N>(list.results[o], bases);
      end(t, n, results);
    }
  }

 private:
  // Where values of each rate begin; `calls` and registers are the memory's own.
  struct Bases {
    T *rows = nullptr, *keys = nullptr, *s = nullptr;
    int64_t stride = 0;
  };

  template <int N> Place<T> place(Slot slot, const Bases& bases) const {
    const int64_t i = slot.index;
    switch (slot.rate) {
      case Rate::call: return {memory_.calls + i * w, 0, 0};
      case Rate::row: return {bases.rows + i * N * w, 0, w};
      case Rate::key: return {bases.keys + i * memory_.steps * w, w, 0};
      default:
        if (i == 0) return {bases.s, bases.stride, w};
        return {memory_.registers + (i - 1) * memory_.strip * N * w, N * w, w};
    }
  }

  void compute_calls() const {
    run_list<1>(list_of(Rate::call), 1, {}, [&](const Step& step, Place<T> to) {
      const int64_t x = step.operation == Operation::b ? sequence_.mask_batch : first_head_;
      write(to.at, splat_whole<T>(nearest_whole<T>(x)));
    });
  }
  // What follows is not inlined: callers have a copy for each kind of coordinates.
  template <int N> __attribute__((noinline)) void compute_rows(const Int<T>* h, const Int<T>* q_idx, T* rows) const {
    Bases bases;
    bases.rows = rows;
    run_list<N>(list_of(Rate::row), 1, bases, [&](const Step& step, Place<T> to) {
      memcpy(to.at, step.operation == Operation::h ? h : q_idx, sizeof(T) * N * w);
    });
  }
  // Step t has the keys first[t % phases][lane] + t / phases.
  __attribute__((noinline)) void compute_keys(const Int<T>* first, int phases, int steps, T* keys) const {
    Bases bases;
    bases.keys = keys;
    run_list<1>(list_of(Rate::key), steps, bases, [&](const Step&, Place<T> to) {
      for (int phase = 0; phase < phases; phase++) {
        Whole<T> key = read<Whole<T>>(first + phase * w);
        for (int t = phase; t < steps; t += phases, key += 1) write(to.at + t * to.step, key);
      }
    });
  }
  template <int N>
  __attribute__((noinline)) void compute_scores(const StepList& list, int n, const Bases& bases) const {
    run_list<N>(list, n, bases, [](const Step&, Place<T>) {});
  }

  const StepList& list_of(Rate rate) const { return memory_.plan->of_rate[int(rate)]; }

  // input(step, to) gives the inputs of this rate.
  template <int N, class F> GQA_INLINE void run_list(const StepList& list, int n, const Bases& bases, F input) const {
    for (int i = 0; i < list.count; i++) {
      const Step& step = list.steps[i];
      const Place<T> to = place<N>(step.to, bases);
      if (step.operation <= Operation::kv_idx) {
        input(step, to);
        continue;
      }
      Place<T> operands[max_array_axes];
      for (int o = 0; o < step.count; o++) operands[o] = place<N>(step.operands[o], bases);
      run_operation<T, N>(step, a_.program->arrays, n, to, operands);
    }
  }

  const Attention& a_;
  const Sequence& sequence_;
  const int64_t group_, first_head_;
  const ProgramMemory<T>& memory_;
};

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
