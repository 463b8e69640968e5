"""The engine's attention where models differ in more than shapes; the judge is the model's own eager attention."""

import threading
import time

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, GptOssConfig, GptOssForCausalLM

from cartridges.attention import NAME, attend
from cartridges.engine.attention import configs_of, engine_attention, grouped_attention
from cartridges.engine.blocks import Run
from cartridges.engine.engine import Engine
from cartridges.engine.request import Request
from cartridges.engine.rows import Store
from cartridges.engine.scheduler import Chunk, Sequence
from cartridges.engine.step import make_step
from cartridges.errors import InputError
from cartridges.model import Model, identify, prefix_kv
from cartridges.sharing import alone
from cartridges.template import ChatFormat
from tests.architectures import SHAPE, tiny
from tests.engine.judges import NEVER
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
        engine_attention(configs_of(model.hf)),
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
    assert {keys.dtype for run in engine.batching.scheduler.blocks.runs for keys, _ in run.kv} == {torch.bfloat16}
    own = logits_of(model, prompt + target).float().log_softmax(-1)[len(prompt) - 1 : -1]
    assert found.dtype == torch.float32
    # no further from the truth than Hugging Face's own attention in bfloat16, up to luck
    assert 0 < (found - expected).abs().mean() < 2 * (own - expected).abs().mean()


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("most", [1 << 22, 1])
def test_parts_make_the_whole(window, most, monkeypatch):
    """Against dense attention over each sequence alone: runs behind runs, part of a run, none; rows of two sizes."""
    monkeypatch.setattr("cartridges.engine.attention.MAX_SCORES", most)
    torch.manual_seed(0)
    slots, text = (Run(num, None, [(torch.randn(2, num, 8), torch.randn(2, num, 8))]) for num in (6, 4))
    text.parent = (slots, 6)
    # path, ids read before, new ids, row
    cases = [
        (((slots, 6), (text, 4)), 3, 1, (64, 0)),
        ((), 2, 5, (64, 1)),
        (((slots, 6), (text, 3)), 0, 9, (128, 0)),
        (((slots, 6),), 7, 1, (64, 2)),
        (((slots, 6), (text, 4)), 1, 3, (64, 3)),
        (((slots, 6), (text, 4)), 5, 1, (64, 4)),
    ]
    store, chunks, own = Store(1), [], []
    store.set_num_rows(64, 5)
    store.set_num_rows(128, 1)
    for path, num_read, num_new, (size, row) in cases:
        own.append(torch.randn(2, 2, num_read + num_new, 8))
        columns = torch.arange(num_read)
        before = own[-1][:, :, :num_read].transpose(1, 2)
        store.sizes[size].write(0, torch.full_like(columns, row), columns, before[0], before[1])
        sequence = Sequence([0] * (num_read + num_new), 0, path=path, num_read=num_read, size=size, row=row)
        chunks.append(Chunk(sequence, num_new))
    step, ordered = make_step(chunks, store, torch.device("cpu"))
    places = [chunks.index(chunk) for chunk in ordered]
    key, value = (torch.cat([own[i][kind, :, cases[i][1] :] for i in places], 1)[None] for kind in (0, 1))
    query, module = torch.randn(1, 4, key.shape[2], 8), torch.nn.Module()
    module.layer_idx = 0
    out, _ = grouped_attention(module, query, key, value, None, engine_step=step, sliding_window=window)
    start = 0
    for i in places:
        path, num_read, num_new, _ = cases[i]
        keys, values = (
            torch.cat([*(run.kv[0][kind][:, :num] for run, num in path), own[i][kind]], 1).repeat_interleave(2, 0)
            for kind in (0, 1)
        )
        distance = torch.arange(keys.shape[1] - num_new, keys.shape[1])[:, None] - torch.arange(keys.shape[1])
        hidden = (distance < 0) | (distance >= (window or 1000))
        asked = query[0, :, start : start + num_new]
        scores = (asked @ keys.transpose(1, 2) / 8**0.5).masked_fill(hidden, -float("inf"))
        expected = (scores.softmax(-1) @ values).transpose(0, 1)
        torch.testing.assert_close(out[0, start : start + num_new], expected, atol=1e-5, rtol=1e-5)
        start += num_new


def test_an_engine_waits_while_another_thread_trains_its_model(qwen):
    engine, request, names, found = Engine(qwen), Request((5, 6, 7), 3), [], []
    (expected,) = engine.generate([request])
    entered, go_on = threading.Event(), threading.Event()

    def train():
        with attend(qwen):
            entered.set()
            go_on.wait(20)
            names.append(qwen.hf.config._attn_implementation)
            names.extend(engine.generate([request])[0].token_ids)  # the same thread may: it is at one thing at a time
            names.append(qwen.hf.config._attn_implementation)

    other = Engine(qwen)
    training = threading.Thread(target=train)
    asking = threading.Thread(target=lambda: found.extend(other.generate([request])))
    training.start()
    assert entered.wait(20)
    asking.start()
    asking.join(0.2)
    assert asking.is_alive() and not found
    go_on.set()
    training.join(20)
    asking.join(20)
    assert names == [NAME, *expected.token_ids, NAME] and found[0].token_ids == expected.token_ids
    assert prefix_kv(qwen, [5, 6])[0][0].shape[1] == 2


def test_an_engine_hears_aborts_while_another_thread_trains_its_model(qwen):
    engine, long, answered = Engine(qwen), Request((5, 6, 7), 400, stop_ids=NEVER), []
    entered, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def train():
        with attend(qwen):
            entered.set()
            go_on.wait(20)
            answered.extend(engine.generate([Request((5, 6, 7), 2)]))  # though the engine's own thread has work
            ended.wait(20)

    training = threading.Thread(target=train)
    training.start()
    assert entered.wait(20)
    handle = engine.submit(long)
    other = engine.submit(long)
    handle.abort()
    assert handle.result(20).finish_reason == "abort" and not other.done
    go_on.set()
    for _ in range(200):
        if answered:
            break
        time.sleep(0.05)
    assert answered, "whoever trains may ask the engine"
    engine.close()  # ends what is open, without waiting for the training
    assert other.result(20).finish_reason in ("abort", "length") and training.is_alive()
    ended.set()
    training.join(20)
    engine.check()


def test_a_thread_may_read_the_model_within_a_call_of_its_own(qwen):
    engine, read = Engine(qwen), []

    def plainly(*args):
        hook.remove()
        with alone(qwen.hf.config):
            read.append(True)

    hook = qwen.hf.register_forward_pre_hook(plainly)
    assert engine.generate([Request((5, 6, 7), 1)])[0].token_ids and read


def test_training_waits_for_the_call_of_an_engine_that_is_under_way(qwen):
    engine, before, found = Engine(qwen), qwen.hf.config._attn_implementation, []
    calling, go_on, entered = threading.Event(), threading.Event(), threading.Event()

    def wait(*args):
        calling.set()
        go_on.wait(20)

    def train():
        with attend(qwen):
            entered.set()

    hook = qwen.hf.register_forward_pre_hook(wait)
    asking = threading.Thread(target=lambda: found.extend(engine.generate([Request((5, 6, 7), 1)])))
    training = threading.Thread(target=train)
    asking.start()
    assert calling.wait(20)
    hook.remove()
    training.start()
    assert not entered.wait(0.2)
    go_on.set()
    assert entered.wait(20)
    asking.join()
    training.join()
    assert len(found) == 1 and qwen.hf.config._attn_implementation == before
