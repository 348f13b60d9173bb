"""A prompt of 8192 tokens, one sequence of it padded: no array of queries x keys is made."""

import sys

import pytest

from child import output_of

pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", ["Llama", "Gemma3"])
def test_peak_memory(name):
    """A mask of bools alone would be 64 MiB for each sequence. The peak counts from the call on, in a fresh process."""
    printed = output_of(
        f"""
        import re
        import torch, gqa.transformers
        from tiny_models import model_named

        def bytes_of(field):
            return int(re.search(field + r":\\s*(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

        torch.set_num_threads(1)
        gqa.transformers.register()
        model = model_named({name!r}, max_position_embeddings=8192)
        model.set_attn_implementation("gqa")
        tokens = torch.ones(2, 8192, dtype=torch.int64)
        mask = torch.ones_like(tokens)
        mask[0, :100] = 0
        with torch.no_grad():
            model(tokens[:, :200], attention_mask=mask[:, :200], use_cache=False, logits_to_keep=1)
            open("/proc/self/clear_refs", "w").write("5")
            before = bytes_of("VmRSS")
            model(tokens, attention_mask=mask, use_cache=False, logits_to_keep=1)
        print(bytes_of("VmHWM") - before)
        """
    )
    assert int(printed.splitlines()[-1]) < 100 * 2**20
