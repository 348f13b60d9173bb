from collections.abc import Sequence
from typing import Any

from gqa.arguments import Array
from gqa.options import Options

__version__: str
MOST_CHANNELS: int
SEQUENCE_COLUMNS: int
RUN_COLUMNS: int
OPTIONS: tuple[str, ...]
RULES: tuple[str, ...]
SPLIT_KEYS: int
XLA_ATTENTION: Any  # capsules for jax.ffi, or None where jaxlib's headers were not there for the build
XLA_GRADIENTS: Any

# name of an operation: (kinds of its operands, kind of its result) for each of its forms
SCORE_OPS: dict[str, tuple[tuple[tuple[str, ...], str], ...]]

class ScoreProgram:
    def __init__(
        self,
        instructions: Sequence[tuple[str, str, tuple[int, ...], Any]],
        outputs: dict[str, int],
        arrays: Sequence[tuple[int, str, str]],
        /,
    ) -> None: ...

# (q, k, v, past_key, past_value), query_offset, kv_lengths
def attention(
    tensors: tuple[Any, Any, Any, Any, Any], query_offset: Any, kv_lengths: Any, options: tuple[Any, ...], /
) -> Any: ...
def infer_shapes(
    tensors: tuple[Any, Any, Any, Any, Any], query_offset: Any, kv_lengths: Any, options: Options, /
) -> tuple[tuple[tuple[int, ...], str], tuple[tuple[int, ...], str]]: ...
def attend_sequences(
    q: Any,
    stores: tuple[tuple[str, Any, str, Any], ...],
    tables: tuple[Any, Any, tuple[int, int, int]],
    options: Options,
    /,
) -> Any: ...
def infer_sequences(
    q: Any, stores: tuple[tuple[str, Any, str, Any], ...], mask_shape: tuple[int, int, int], options: Options, /
) -> tuple[tuple[tuple[int, ...], str], tuple[tuple[int, ...], str]]: ...
def attend_states(
    q: Any,
    stores: tuple[tuple[str, Any, str, Any], ...],
    tables: tuple[Any, Any, tuple[int, int, int]],
    options: Options,
    states: tuple[Any, int],
    /,
) -> Any: ...
def merge_subtrees(
    q: Any, kv_heads: int, subtrees: Any, tables: tuple[Any, Any, int], options: Options, states: Any, /
) -> Any: ...

# (k, v, lengths); (keys, values, lengths, oldest, capacity, window): the lists are changed in place
def append_slots(
    tokens: tuple[Any, Any, Any], slots: tuple[Any, Any, list[int], list[int], int, int | None], layout: str, /
) -> None: ...
def attend_slots(
    q: Any,
    tokens: tuple[Any, Any, Any],
    slots: tuple[Any, Any, list[int], list[int], int, int | None],
    options: tuple[Any, ...],
    /,
) -> Any: ...

HEADER_BYTES: int

# ((keys, values, lengths, oldest, capacity, window), ranks, rank). The message is filled; what comes is the step, and
# its states if the message has no room for them, the bytes that each rank has of them, and the most that one has.
def begin_append(tokens: tuple[Any, Any, Any], shard: tuple[Any, int, int], layout: str, message: Array, /) -> Any: ...
def end_append(step: Any, /) -> None: ...
def begin_attend(
    q: Any, tokens: tuple[Any, Any, Any], shard: tuple[Any, int, int], options: tuple[Any, ...], message: Array, /
) -> tuple[Any, tuple[Array | None, list[int], int]]: ...
def end_attend(step: Any, gathered: Array, messages: bool, /) -> Any: ...
def messages_agree(messages: Array, ranks: int, /) -> bool: ...
def digest(x: Any, /) -> int: ...
def deal_blocks(ranks: int, window: int, first: int, last: int, /) -> list[tuple[int, int, int, int]]: ...
def deal_held(ranks: int, rank: int, window: int, token: int, /) -> int: ...
def deal_room(ranks: int, rank: int, window: int, capacity: int, /) -> int: ...

# (k, v, lengths); the sequences, with attributes `pages` and `length`; (keys, values, page_size, reserve)
def append_pages(
    tokens: tuple[Any, Any, list[int]], sequences: list[Any], pool: tuple[Any, Any, int, Any], /
) -> None: ...
def attend_pages(
    q: Any,
    tokens: tuple[Any, Any, list[int]],
    sequences: list[Any],
    pool: tuple[Any, Any, int, Any],
    options: tuple[Any, ...],
    /,
) -> Any: ...
def int_list(name: str, value: Any, count: int | None, /) -> list[int]: ...
def quantize(name: str, x: Array, /) -> tuple[Array, Array]: ...

# (dout, q, k, v, out, lse, dlse), query_offset, kv_lengths, mask_grad, options: (dq, dk, dv, dmask, dsinks)
def attention_vjp(
    tensors: tuple[Any, Any, Any, Any, Any, Any, Any],
    query_offset: Any,
    kv_lengths: Any,
    mask_grad: Any,
    options: Options,
    /,
) -> tuple[Any, Any, Any, Any, Any]: ...
def check_attention_vjp(
    tensors: tuple[Any, Any, Any, Any, Any, Any, Any],
    query_offset: Any,
    kv_lengths: Any,
    mask_grad: Any,
    options: Options,
    /,
) -> None: ...
def sequences_vjp(
    tensors: tuple[Any, Any, Any, Any, Any, Any, Any],
    tables: tuple[Any, Any, tuple[int, int, int]],
    options: Options,
    /,
) -> tuple[Any, Any, Any, Any, Any]: ...
def check_sequences_vjp(
    tensors: tuple[Any, Any, Any, Any, Any, Any, Any], mask_shape: tuple[int, int, int], options: Options, /
) -> None: ...
def rotary(x: Any, cos: Any, sin: Any, positions: Any, interleaved: Any, layout: Any, num_threads: Any, /) -> Any: ...
def merge_states(outs: tuple[Any, ...], lses: tuple[Any, ...], out: Any, lse: Any, num_threads: Any, /) -> None: ...
def as_array(name: str, x: Any, /) -> Array: ...
def sharing_memory(x: Array, others: tuple[Array | None, ...], /) -> list[int]: ...
def available_isas() -> list[str]: ...
def isa() -> str: ...
def use_isa(name: str, /) -> None: ...
def default_threads() -> int: ...
def set_threads(n: int, /) -> None: ...
def has_openmp() -> bool: ...
