"""Fine-tuning on gqa: the gradients of every weight are those of eager attention."""

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

import gqa.transformers  # noqa: E402
from tiny_models import DECODERS, ENCODER_DECODERS, model_named, prompt  # noqa: E402

gqa.transformers.register()


@pytest.mark.parametrize("name", [*DECODERS, *ENCODER_DECODERS])
def test_gradients_of_the_weights(name):
    model = model_named(name).train()
    for part in model.modules():  # T5 and Bart drop by default
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    for x in ("dropout", "attention_dropout", "activation_dropout"):
        for part in model.modules():
            if isinstance(getattr(part, x, None), float):
                setattr(part, x, 0.0)
    tokens, mask = prompt(padding=7)
    if name in ENCODER_DECODERS:
        mask = mask.flip(1)
    learned = mask.bool()
    learned[:, 1:] &= mask[:, :-1].bool()  # what follows padding is not: rows that see nothing differ
    labels = torch.where(learned, tokens, -100)
    found = {}
    for implementation in ("eager", "gqa"):
        model.set_attn_implementation(implementation)
        model.zero_grad()
        model(tokens, attention_mask=mask, labels=labels, use_cache=False).loss.backward()
        found[implementation] = {name: x.grad.clone() for name, x in model.named_parameters() if x.grad is not None}
    assert found["gqa"].keys() == found["eager"].keys()
    for name, expected in found["eager"].items():
        torch.testing.assert_close(
            found["gqa"][name], expected, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
