"""The backward operators, and autograd: which of its arguments a forward operator passes gradients on to."""

from __future__ import annotations

from typing import Any

import torch

from gqa import gradients
from gqa.torch.library import ATTENTION, ATTENTION_BACKWARD, LIBRARY, VARLEN, VARLEN_BACKWARD, names_of, options_of
from gqa.torch.tensors import as_tensor, as_viewed

Gradients = tuple[torch.Tensor, ...]
_ENDS = ("cu_seqlens_q", "cu_seqlens_k")
_DIFFERENTIABLE = ("q", "k", "v", "mask", "sinks")


# ---- computed, and described ---------------------------------------------------------------------------------------


def _attention_backward(*arguments: Any) -> Gradients:
    options = _viewed(ATTENTION_BACKWARD, arguments)
    tensors = [options.pop(name) for name in ("dout", "q", "k", "v", "out", "lse")]
    return _made(gradients.attention_vjp(*tensors, **options))


def _varlen_attention_backward(*arguments: Any) -> Gradients:
    options = _viewed(VARLEN_BACKWARD, arguments)
    del options["mask_grad"]
    tensors = [options.pop(name) for name in ("dout", "q", "k", "v", *_ENDS, "out", "lse")]
    return _made(gradients.varlen_attention_vjp(*tensors, **options))


def _viewed(operator: Any, arguments: tuple[Any, ...]) -> dict[str, Any]:
    options = {name: as_viewed(x) for name, x in options_of(operator, arguments).items()}
    del options["out_dtype"]
    if options["num_threads"] is None:
        options["num_threads"] = torch.get_num_threads()
    return options


def _made(found: Any) -> Gradients:
    return tuple(torch.empty(0) if x is None else as_tensor(x) for x in found)


def _described(operator: Any, *arguments: Any) -> Gradients:
    options = options_of(operator, arguments)
    wanted = {**options, "mask": options["mask"] if options["mask_grad"] else None}
    like = (wanted[name] for name in _DIFFERENTIABLE)
    q = options["q"]
    return tuple(q.new_empty(0, dtype=torch.float32) if x is None else x.new_empty(x.shape) for x in like)


# ---- autograd ------------------------------------------------------------------------------------------------------


def _save(operator: Any, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    named = dict(zip(names_of(operator), inputs))
    if named.get("past_key") is not None:
        raise NotImplementedError("past_key has no gradient: torch.ops.gqa.attention takes it joined to k, or detached")
    captured = named.pop("captured")
    tensors = {name: x for name, x in named.items() if isinstance(x, torch.Tensor)}
    ctx.save_for_backward(*tensors.values(), *output, *captured)
    ctx.names, ctx.others = list(tensors), {name: x for name, x in named.items() if name not in tensors}


def _differentiate(operator: Any, backward: Any, ctx: Any, dout: Any, dlse: Any) -> Gradients:
    saved, count = ctx.saved_tensors, len(ctx.names)
    tensors, (out, lse), captured = saved[:count], saved[count : count + 2], saved[count + 2 :]
    names = names_of(operator)
    mask_grad = ctx.needs_input_grad[names.index("mask")]
    if mask_grad and operator is VARLEN:
        raise NotImplementedError("mask requires a gradient, which varlen_attention does not have")
    named = {**dict(zip(ctx.names, tensors)), **ctx.others}
    named |= {"dout": dout, "dlse": dlse, "out": out, "lse": lse, "mask_grad": mask_grad, "captured": captured}
    found = dict(zip(_DIFFERENTIABLE, backward(*(named[name] for name in names_of(backward)))))
    needed = dict(zip(names, ctx.needs_input_grad))
    grads = {name: x for name, x in found.items() if needed[name]}
    grads["captured"] = [None] * len(captured)
    return tuple(grads.get(name) for name in names)


def _refuse_second(*_: Any) -> Any:
    raise NotImplementedError("gqa.torch has no second derivatives")


def _register(operator: Any, backward: Any, kernel: Any) -> None:
    LIBRARY.impl(backward, kernel, "CPU")
    torch.library.register_fake(backward, lambda *arguments: _described(backward, *arguments), lib=LIBRARY)
    torch.library.register_autograd(
        operator,
        lambda ctx, dout, dlse: _differentiate(operator, backward, ctx, dout, dlse),
        setup_context=lambda ctx, inputs, output: _save(operator, ctx, inputs, output),
        lib=LIBRARY,
    )
    torch.library.register_autograd(backward, _refuse_second, lib=LIBRARY)


_register(ATTENTION, ATTENTION_BACKWARD, _attention_backward)
_register(VARLEN, VARLEN_BACKWARD, _varlen_attention_backward)
