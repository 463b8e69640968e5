"""The engine's attention where models differ in more than shapes; the judge is the model's own eager attention."""

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, GptOssConfig, GptOssForCausalLM

from cartridges.engine.attention import engine_attention, shared_prefix_attention
from cartridges.engine.engine import Engine
from cartridges.engine.request import Request
from cartridges.engine.rows import Prefix, Rows
from cartridges.errors import InputError
from cartridges.model import Model, identify
from cartridges.template import ChatFormat
from tests.architectures import SHAPE, tiny
from tests.reference import logits_of


def small(tokenizer, config_class, model_class, **options):
    torch.manual_seed(0)
    hf = model_class(config_class(**{**SHAPE, "vocab_size": len(tokenizer), "attn_implementation": "eager", **options}))
    hf.eval().requires_grad_(False)
    chat = ChatFormat(tokenizer)
    return Model(hf, tokenizer, chat, identify(hf, chat, "small", None), 1024)


def test_scores_are_capped_where_the_model_caps_them(tiny_tokenizer):
    model = small(tiny_tokenizer, Gemma2Config, Gemma2ForCausalLM, sliding_window=8, attn_logit_softcapping=0.05)
    with torch.no_grad():
        for parameter in model.hf.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    ids = list(range(10, 40))
    found = list(Engine(model).distributions_batch([(ids[:20], ids[20:], None, 11), (ids[:20], ids[20:22], None, 11)]))
    expected = logits_of(model, ids).log_softmax(-1)[19:-1]
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1], expected[:2], atol=1e-5, rtol=1e-5)
    for layer in model.hf.model.layers:
        layer.self_attn.attn_logit_softcapping = None
    assert (logits_of(model, ids).log_softmax(-1)[19:-1] - expected).abs().max() > 0.01, "the cap matters here"


def test_attention_with_unknown_parts_is_refused(tiny_tokenizer):
    model = small(
        tiny_tokenizer, GptOssConfig, GptOssForCausalLM, num_local_experts=2, num_experts_per_tok=1, sliding_window=8
    )
    with pytest.raises(InputError, match="models with s_aux in their attention are not supported by the engine"):
        Engine(model).generate([Request((5, 6), 1)])
    assert model.hf.config._attn_implementation == "eager"


def test_models_that_hand_nothing_through_are_refused(tiny_tokenizer):
    model = tiny("llama", tiny_tokenizer)
    with (
        engine_attention(model.hf),
        pytest.raises(InputError, match="this model does not hand keyword arguments to its attention"),
    ):
        model.hf(input_ids=torch.tensor([[5, 6]]), use_cache=False)


def test_a_model_in_bfloat16_stays_near_itself_in_float32(tiny_tokenizer):
    model = tiny("gemma3", tiny_tokenizer)
    prompt, target = list(range(10, 40)), [50, 60, 70]
    expected = Engine(model).distributions(prompt, target)
    model.hf.to(torch.bfloat16)
    engine = Engine(model)
    (found,) = engine.distributions_batch([(prompt, target, None, 17)])
    assert {keys.dtype for prefix in engine.prefixes.held.values() for keys in prefix.keys} == {torch.bfloat16}
    own = logits_of(model, prompt + target).float().log_softmax(-1)[len(prompt) - 1 : -1]
    assert found.dtype == torch.float32
    # no further from the truth than Hugging Face's own attention in bfloat16, up to luck
    assert 0 < (found - expected).abs().mean() < 2 * (own - expected).abs().mean()


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("most", [1 << 22, 1])
def test_queries_in_blocks_give_what_all_at_once_give(window, most, monkeypatch):
    """Against dense attention over each row alone."""
    torch.manual_seed(0)
    num_slots, length, paddings = 6, 9, [0, 4, 7]
    prefix = Prefix([torch.randn(2, num_slots, 8)], [torch.randn(2, num_slots, 8)])
    query, key, value = torch.randn(3, 4, length, 8), torch.randn(3, 2, length, 8), torch.randn(3, 2, length, 8)
    monkeypatch.setattr("cartridges.engine.attention.MAX_SCORES", most)
    rows, module = Rows(prefix, paddings, torch.device("cpu")), torch.nn.Module()
    module.layer_idx = 0
    rows.extend(length)
    out, _ = shared_prefix_attention(module, query, key, value, None, engine_rows=rows, sliding_window=window)
    for row, padding in enumerate(paddings):
        keys = torch.cat([prefix.keys[0], key[row, :, padding:]], 1).repeat_interleave(2, 0)
        values = torch.cat([prefix.values[0], value[row, :, padding:]], 1).repeat_interleave(2, 0)
        distance = torch.arange(num_slots, keys.shape[1])[:, None] - torch.arange(keys.shape[1])
        hidden = (distance < 0) | (distance >= (window or 1000))
        scores = (query[row, :, padding:] @ keys.transpose(1, 2) / 8**0.5).masked_fill(hidden, -float("inf"))
        expected = (scores.softmax(-1) @ values).transpose(0, 1)
        torch.testing.assert_close(out[row, padding:], expected, atol=1e-5, rtol=1e-5)
