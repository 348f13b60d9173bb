from typing import Any

__version__: str

def attention(
    q: Any,
    k: Any,
    v: Any,
    past_key: Any,
    past_value: Any,
    mask: Any,
    causal: Any,
    query_offset: Any,
    window: Any,
    kv_lengths: Any,
    scale: Any,
    softcap: Any,
    sinks: Any,
    layout: Any,
    out: Any,
    return_lse: Any,
    num_threads: Any,
    /,
) -> Any: ...
def attend_sequences(
    q: Any,
    stores: list[tuple[Any, Any]],
    sequences: Any,
    runs: Any,
    mask: Any,
    mask_shape: tuple[int, int, int],
    causal: Any,
    window: Any,
    scale: Any,
    softcap: Any,
    sinks: Any,
    layout: Any,
    out: Any,
    return_lse: Any,
    num_threads: Any,
    /,
) -> Any: ...
def rotary(x: Any, cos: Any, sin: Any, positions: Any, interleaved: Any, layout: Any, num_threads: Any, /) -> Any: ...
def merge_states(outs: tuple[Any, ...], lses: tuple[Any, ...], out: Any, lse: Any, num_threads: Any, /) -> None: ...
def near(x: Any, others: tuple[Any, ...]) -> list[int]: ...
def available_isas() -> list[str]: ...
def isa() -> str: ...
def use_isa(name: str, /) -> None: ...
def default_threads() -> int: ...
def set_threads(n: int, /) -> None: ...
def has_openmp() -> bool: ...
