"""PagedKVCache under any sequence of operations: as plain arrays, and with every page accounted for."""

import itertools

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


class PagedMachine(RuleBasedStateMachine):
    """sequences: by id, every token of a sequence."""

    @initialize(
        num_pages=st.integers(0, 12), page_size=st.integers(1, 5), seed=st.integers(0, 99),
        dtype=st.sampled_from(["float32", "float64", "float16", "bfloat16", "int8"]),
    )  # fmt: skip
    def start(self, num_pages, page_size, dtype, seed):
        self.num_pages, self.page_size, self.dtype = num_pages, page_size, dtype
        self.rng = np.random.default_rng(seed)
        self.cache = gqa.PagedKVCache(
            num_pages, page_size, KV_HEADS, HEAD_DIM, v_head_dim=V_HEAD_DIM, dtype=dtype
        )  # fmt: skip
        self.sequences, self.freed = {}, set()

    @rule()
    def add(self):
        self.insert(self.cache.add(), Sequence.empty(KV_HEADS, HEAD_DIM, V_HEAD_DIM))

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def fork(self, data):
        id_ = self.draw_id(data)
        self.insert(self.cache.fork(id_), self.sequences[id_])

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def truncate(self, data):
        id_ = self.draw_id(data)
        length = data.draw(st.integers(0, len(self.sequences[id_])))
        self.cache.truncate(id_, length)
        self.sequences[id_] = self.sequences[id_][:length]

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def free(self, data):
        id_ = self.draw_id(data)
        self.cache.free(id_)
        del self.sequences[id_]
        self.freed.add(id_)

    @rule(data=st.data())
    def append(self, data):
        ids, lengths = self.draw_lengths(data, 9)
        k, v = self.normal(sum(lengths), KV_HEADS, HEAD_DIM), self.normal(sum(lengths), KV_HEADS, V_HEAD_DIM)
        self.write(ids, lengths, k, v, lambda: self.cache.append(ids, k, v, lengths))

    @rule(causal=st.booleans(), window=windows, new=st.booleans(), data=st.data())
    def attend(self, causal, window, new, data):
        ids, lengths = self.draw_lengths(data, 5)
        q = self.normal(sum(lengths), HEADS, HEAD_DIM)
        options = {"causal": causal, "window": window}
        if new:
            k, v = self.normal(len(q), KV_HEADS, HEAD_DIM), self.normal(len(q), KV_HEADS, V_HEAD_DIM)
            result = self.write(
                ids, lengths, k, v, lambda: self.cache.attend(ids, q, lengths, k, v, return_lse=True, **options)
            )  # fmt: skip
            if result is None:
                return
            out, lse = result
        else:
            out, lse = self.cache.attend(ids, q, lengths, return_lse=True, **options)
        for id_, rows in zip(ids, self.rows(lengths)):
            expected, expected_lse = self.sequences[id_].attend(q[rows], **options)
            assert_close(out[rows], expected, magnitude=MAGNITUDES.get(self.dtype, 1))
            assert_lse_close(lse[:, rows].T, expected_lse)

    @invariant()
    def holds_all_tokens(self):
        assert self.cache.lengths == {id_: len(sequence) for id_, sequence in self.sequences.items()}
        tables = self.cache.block_tables
        for id_, sequence in self.sequences.items():
            assert len(tables[id_]) == -(-len(sequence) // self.page_size)
            p = np.arange(len(sequence))
            pages, slots = tables[id_][p // self.page_size], p % self.page_size
            np.testing.assert_array_equal(oracle.wide(self.cache.keys)[pages, :, slots], sequence.keys)
            np.testing.assert_array_equal(oracle.wide(self.cache.values)[pages, :, slots], sequence.values)

    @invariant()
    def every_page_has_owners_or_is_free(self):
        used = {int(page) for table in self.cache.block_tables.values() for page in table}
        assert self.cache.free_pages == self.num_pages - len(used)

    def write(self, ids, lengths, k, v, call):
        """Call, if there are pages for it, and give the model the tokens; otherwise it must be refused."""
        needed = self.needed(ids, lengths)
        if needed > self.cache.free_pages:
            before = bytes_of(self.cache.keys, self.cache.values), str(self.cache.block_tables)
            with pytest.raises(ValueError, match=f"need {needed} pages, but only {self.cache.free_pages} are free"):
                call()
            assert (bytes_of(self.cache.keys, self.cache.values), str(self.cache.block_tables)) == before
            return None
        free = self.cache.free_pages
        result = call()
        assert self.cache.free_pages == free - needed
        for id_, rows in zip(ids, self.rows(lengths)):
            self.sequences[id_] = self.sequences[id_].append(k[rows], v[rows], self.dtype)
        return result

    def needed(self, ids, lengths):
        """New pages, and copies of shared ones that are filled in part: one for each writer but the last owner."""
        pages, owners = 0, {}
        tables = self.cache.block_tables
        for table in tables.values():
            for page in table:
                owners[int(page)] = owners.get(int(page), 0) + 1
        for id_, n in zip(ids, lengths):
            length = len(self.sequences[id_])
            pages += -(-(length + n) // self.page_size) - len(tables[id_])
            if n > 0 and length % self.page_size:
                last = int(tables[id_][-1])
                pages += owners[last] > 1
                owners[last] -= 1
        return pages

    def insert(self, id_, sequence):
        assert id_ not in self.sequences
        assert id_ not in self.freed
        self.sequences[id_] = sequence

    def draw_id(self, data):
        return data.draw(st.sampled_from(sorted(self.sequences)))

    def draw_lengths(self, data, most):
        """Some ids in any order, and a number of tokens for each."""
        ids = data.draw(st.lists(st.sampled_from(sorted(self.sequences)), unique=True)) if self.sequences else []
        return ids, [data.draw(st.integers(0, most)) for _ in ids]

    def normal(self, *shape):
        return self.rng.standard_normal(shape, np.float32)

    def rows(self, lengths):
        return [slice(begin, end) for begin, end in itertools.pairwise(np.cumsum([0, *lengths]))]


def test_any_sequence_of_operations():
    run_state_machine_as_test(
        PagedMachine,
        settings=settings(
            max_examples=200, stateful_step_count=15, deadline=None, suppress_health_check=[HealthCheck.too_slow]
        ),
    )
