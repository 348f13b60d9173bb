"""The options that every attention call has, as the core takes them."""

from __future__ import annotations

from typing import Any, NamedTuple

from gqa import _core


class Options(NamedTuple):
    """What is said about a call besides its tensors and positions; :func:`gqa.attention` says what each means.

    Values are as users give them: the core reads, checks and refuses them. A new option is a line here, one in the
    core's table (csrc/python/options.cpp), and one in the signature of each function that has it.
    """

    layout: Any = "bhsd"
    causal: Any = False
    window: Any = None
    scale: Any = None
    softcap: Any = 0.0
    out_dtype: Any = None
    return_lse: Any = False
    num_threads: Any = None
    program: Any = None
    mask: Any = None
    sinks: Any = None
    out: Any = None


if Options._fields != _core.OPTIONS:  # the core reads them by their places
    raise ImportError(f"gqa's extension has the options {_core.OPTIONS}, expected {Options._fields}")
