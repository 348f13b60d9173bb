// gradient_ahead.h: rows that a task of the backward pass comes to next, fetched while its products run.
//
// Rows of a tile lie apart, one run of them for each head of the group, and most are read or written once: nothing that
// prefetchers of a processor expect. On demand they cost short sequences a tenth of their time. So every register tile
// is preceded by some of their lines: few enough not to fill the buffers of lines on their way, which the tile's own
// loads need too.
#pragma once

#include "tile_rows.h"

namespace gqa {
namespace GQA_ISA {
namespace {

class GradientAhead {
 public:
  GradientAhead(const Gradients& g, const GradientTask& task) {
    const Attention& a = *g.attention;
    const HeadRows head(a, *task.sequence, task.kv_head);
    const auto rows = [&](const char* data, const Strides& s, int64_t bytes) {
      return Stream{at_row(data, s, head.sequence, head.first_head, 0), head.group, s.head, s.token, bytes, 0, 0};
    };
    const auto rows_of = [&](const RowTensor& x, int64_t channels) {
      return rows(x.data, x.strides, channels * bytes_of(x.type));
    };
    streams_[dq] = rows_of(g.dq, a.head_dim);
    streams_[q] = rows(a.q, a.q_strides, a.head_dim * bytes_of(a.q_type));
    streams_[dout] = rows_of(g.dout, a.v_head_dim);
    streams_[out] = rows_of(g.out, a.v_head_dim);
    if (task.sequence->run_count == 0) return;

    const Run& run = task.sequence->runs[0];
    const Store& store = a.stores[run.store];
    const auto keys = [&](const char* data, const Strides& s, int64_t bytes) {
      return Stream{
          data + run.batch * s.batch + task.kv_head * s.head + run.token * s.token, 1, 0, s.token, bytes, 0, 0};
    };
    const auto sums = [&](const RowTensor& x, int64_t channels) {
      return keys(x.data, x.strides, channels * bytes_of(x.type));
    };
    streams_[k] = keys(store.k, store.k_strides, a.head_dim * bytes_of(store.k_type));
    streams_[v] = keys(store.v, store.v_strides, a.v_head_dim * bytes_of(store.v_type));
    streams_[dk] = sums(task.dk_sums, a.head_dim);
    streams_[dv] = sums(task.dv_sums, a.v_head_dim);
  }

  // What is needed next, in place of what was announced before: rows [from, to) of q, dout and out, or of dq; keys
  // [from, to) of k and v, or of dk and dv.
  void announce_rows(int64_t from, int64_t to) { set(q, out, from, to); }
  void announce_dq(int64_t from, int64_t to) { set(dq, dq, from, to); }
  void announce_keys(int64_t from, int64_t to) { set(k, v, from, to); }
  void announce_sums(int64_t from, int64_t to) { set(dk, dv, from, to); }

  // Fetches a few lines of it.
  void fetch() {
    int lines = lines_at_once;
    for (; first_ < streams; first_++) {
      Stream& s = streams_[first_];
      for (; s.next < s.end; s.next++) {
        if (lines <= 0) return;
        const char* const row = s.data + s.next % s.group * s.head + s.next / s.group * s.token;
        for (int64_t byte = 0; byte < s.bytes; byte += line_bytes, lines--) prefetch_to_l2(row + byte);
      }
    }
  }

 private:
  // Fewer before tiles that take less time.
  static constexpr int line_bytes = 64, lines_at_once = registers == 32 ? 12 : 4;
  enum Name { dq, k, v, dk, dv, q, dout, out, streams };  // in the order in which they are needed

  // Row i is at data + i % group * head + i / group * token; [next, end) are to be fetched.
  struct Stream {
    const char* data;
    int64_t group, head, token, bytes;
    int64_t next, end;
  };

  void set(int first, int last, int64_t from, int64_t to) {
    for (int i = first; i <= last; i++) streams_[i].next = from, streams_[i].end = to;
    if (first < first_) first_ = first;
  }

  Stream streams_[streams] = {};
  int first_ = streams;  // no stream before it has anything left
};

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
