"""KVCache under any sequence of operations: as plain arrays, concatenated and cut."""

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import gqa
import oracle
from compare import assert_close, assert_lse_close
from sequence_model import MAGNITUDES, Sequence, bytes_of

KV_HEADS, HEADS, HEAD_DIM, V_HEAD_DIM = 2, 4, 4, 6
windows = st.none() | st.tuples(st.none() | st.integers(0, 6), st.none() | st.integers(0, 3))


class CacheMachine(RuleBasedStateMachine):
    """sequences: every token ever given; oldest: the first of each that a ring still holds."""

    @initialize(
        batch=st.integers(1, 3), window=st.none() | st.integers(1, 6), room=st.integers(0, 6),
        dtype=st.sampled_from(["float32", "float64", "float16", "bfloat16", "int8"]),
        layout=st.sampled_from(["bhsd", "bshd"]), seed=st.integers(0, 99),
    )  # fmt: skip
    def start(self, batch, window, room, dtype, layout, seed):
        self.window, self.dtype, self.layout = window, dtype, layout
        self.rng = np.random.default_rng(seed)
        options = {"v_head_dim": V_HEAD_DIM, "dtype": dtype, "window": window, "layout": layout}
        self.cache = gqa.KVCache(batch, KV_HEADS, (window or 2) + room, HEAD_DIM, **options)
        self.sequences, self.oldest = [Sequence.empty(KV_HEADS, HEAD_DIM, V_HEAD_DIM)] * batch, [0] * batch

    @rule(count=st.integers(0, 5), data=st.data())
    def append(self, count, data):
        k, v, lengths = self.draw_tokens(count, data)
        if self.fits(lengths):
            self.cache.append(k, v, lengths)
            self.take(k, v, lengths)
        else:
            self.refused("past the capacity", lambda: self.cache.append(k, v, lengths))

    @rule(count=st.integers(0, 5), more=st.integers(-1, 1), causal=st.booleans(), window=windows, data=st.data())
    def attend_new(self, count, more, causal, window, data):
        k, v, lengths = self.draw_tokens(count, data)
        q = self.normal(max(count + more, 0), HEADS, HEAD_DIM)
        totals = [len(s) + n for s, n in zip(self.sequences, lengths)]
        options = {"causal": causal, "window": window, "mask": self.draw_mask(q, totals, data)}

        def call():
            return self.cache.attend(self.laid_out(q), k, v, lengths=lengths, return_lse=True, **options)

        if not self.fits(lengths):
            self.refused("past the capacity", call)
            return
        out, lse = call()
        before = [len(s) for s in self.sequences]
        self.take(k, v, lengths)
        rows = [min(q.shape[1], n) for n in lengths]
        self.check(q, out, lse, before, rows, options)

    @rule(queries=st.integers(0, 4), causal=st.booleans(), window=windows, data=st.data())
    def attend_old(self, queries, causal, window, data):
        q, lengths = self.normal(queries, HEADS, HEAD_DIM), [len(s) for s in self.sequences]
        options = {"causal": causal, "window": window, "mask": self.draw_mask(q, lengths, data)}
        offsets, left = [n - queries for n in lengths], self.whole_window(window)[0]
        if self.window and any(max(p - left, 0) < oldest for p, oldest in zip(offsets, self.oldest)):
            self.refused("the ring has dropped", lambda: self.cache.attend(self.laid_out(q), **options))
            return
        out, lse = self.cache.attend(self.laid_out(q), return_lse=True, **options)
        self.check(q, out, lse, offsets, [queries] * len(lengths), options)

    @rule(data=st.data())
    def truncate(self, data):
        kept = [data.draw(st.integers(0, len(s))) for s in self.sequences]
        seen = [max(n + 1 - (self.window or n + 1), 0) for n in kept]  # the first token that the next one attends
        if any(first < min(n, oldest) for first, n, oldest in zip(seen, kept, self.oldest)):
            self.refused("the ring has dropped", lambda: self.cache.truncate(kept))
            return
        self.cache.truncate(kept)
        self.sequences = [s[:n] for s, n in zip(self.sequences, kept)]
        self.oldest = [min(oldest, n) for oldest, n in zip(self.oldest, kept)]

    @rule(data=st.data())
    def select(self, data):
        rows = data.draw(st.lists(st.integers(0, len(self.sequences) - 1), min_size=1, max_size=3))
        self.cache.select(rows)
        self.sequences, self.oldest = [self.sequences[b] for b in rows], [self.oldest[b] for b in rows]

    @rule(more=st.integers(0, 4))
    def grow(self, more):
        capacity = (self.window or max(map(len, self.sequences))) + more
        self.cache.grow(capacity)
        self.oldest = [max(oldest, len(s) - capacity) for s, oldest in zip(self.sequences, self.oldest)]

    @rule()
    def reset(self):
        self.cache.reset()
        self.sequences = [s[:0] for s in self.sequences]
        self.oldest = [0] * len(self.oldest)

    @rule()
    def copy(self):
        original, self.cache = self.cache, self.cache.copy()
        for x in (original.keys, original.values):
            (x.data if self.dtype == "int8" else x)[...] = 1

    @precondition(lambda self: max(map(len, self.sequences)) > 0)
    @rule()
    def own_tokens(self):
        self.refused(
            "shares memory", lambda: self.cache.append(self.cache.keys, self.cache.values, [0] * len(self.sequences))
        )

    @invariant()
    def holds_the_last_tokens(self):
        assert self.cache.lengths.tolist() == [len(s) for s in self.sequences]
        for x, name in ((self.cache.keys, "keys"), (self.cache.values, "values")):
            stored = oracle.wide(x) if self.layout == "bshd" else oracle.wide(x).swapaxes(1, 2)
            for b, (sequence, oldest) in enumerate(zip(self.sequences, self.oldest)):
                p = np.arange(oldest, len(sequence))
                np.testing.assert_array_equal(stored[b, p % self.cache.capacity], getattr(sequence, name)[p])

    def normal(self, count, heads, channels):
        return self.rng.standard_normal((len(self.sequences), count, heads, channels), np.float32)

    def laid_out(self, x):
        return x if self.layout == "bshd" else x.swapaxes(1, 2)

    def draw_tokens(self, count, data):
        k, v = self.normal(count, KV_HEADS, HEAD_DIM), self.normal(count, KV_HEADS, V_HEAD_DIM)
        lengths = [data.draw(st.integers(0, count)) for _ in self.sequences] if data.draw(st.booleans()) else None
        for b, n in enumerate(lengths or []):
            k[b, n:] = v[b, n:] = np.nan
        return self.laid_out(k), self.laid_out(v), lengths or [count] * len(self.sequences)

    def draw_mask(self, q, lengths, data):
        shape = (len(q), HEADS, q.shape[1], max(lengths))
        return self.rng.random(shape) < 0.7 if data.draw(st.booleans()) else None

    def fits(self, lengths):
        return self.window or all(len(s) + n <= self.cache.capacity for s, n in zip(self.sequences, lengths))

    def take(self, k, v, lengths):
        k, v = self.laid_out(k), self.laid_out(v)
        self.sequences = [
            s.append(k[b, :n], v[b, :n], self.dtype) for b, (s, n) in enumerate(zip(self.sequences, lengths))
        ]
        if self.window:
            self.oldest = [max(o, len(s) - self.cache.capacity) for o, s in zip(self.oldest, self.sequences)]

    def whole_window(self, window):
        """The window of a call and that of the ring, as (left, right)."""
        left, right = window or (None, None)
        bounds = [n for n in (left, self.window and self.window - 1) if n is not None]
        return min(bounds, default=None), right

    def check(self, q, out, lse, offsets, rows, options):
        """Row i of sequence b stands at offsets[b] + i; those from rows[b] on are 0."""
        out, lse = self.laid_out(out), lse if self.layout == "bshd" else lse.swapaxes(1, 2)
        window = self.whole_window(options["window"])
        for b, (sequence, offset, n) in enumerate(zip(self.sequences, offsets, rows)):
            mask = None if options["mask"] is None else options["mask"][b, :, :n, : len(sequence)]
            expected, expected_lse = sequence.attend(
                q[b, :n], query_offset=offset, causal=options["causal"], window=window, mask=mask
            )
            assert_close(out[b, :n], expected, magnitude=MAGNITUDES.get(self.dtype, 1))
            assert_lse_close(lse[b, :n], expected_lse)
            assert not out[b, n:].any()

    def refused(self, message, call):
        before = bytes_of(*self.cache._slots.store)
        with pytest.raises(ValueError, match=message):
            call()
        assert bytes_of(*self.cache._slots.store) == before


def test_any_sequence_of_operations():
    run_state_machine_as_test(
        CacheMachine,
        settings=settings(
            max_examples=200, stateful_step_count=15, deadline=None, suppress_health_check=[HealthCheck.too_slow]
        ),
    )
