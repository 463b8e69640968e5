"""Replies as they come, and a model that is as it was afterwards."""

import pytest

from cartridges.compose import compose
from cartridges.engine.engine import Engine
from cartridges.engine.request import Request
from tests.engine.judges import NEVER, ids_of, make_cartridge


def test_streamed_pieces_are_the_reply(model):
    request = Request(ids_of(model, 8, 6), 40, 1.0, 3, cartridge=make_cartridge(model, 4), stop_ids=NEVER)
    engine = Engine(model)
    pieces = list(engine.stream(request))
    assert len(pieces) > 3 and all(pieces)
    assert "".join(pieces) == engine.generate([request])[0].text


def test_streaming_never_cuts_a_character(qwen, monkeypatch):
    text = "naïve 🙂 café 中文"
    token_ids = qwen.tokenizer.encode(text, add_special_tokens=False)
    assert len(token_ids) > len(text), "the tokenizer writes some characters with several tokens"
    script = iter(token_ids)
    monkeypatch.setattr("cartridges.engine.batching.choose", lambda *given: [next(script)])
    pieces = list(Engine(qwen).stream(Request((5,), len(token_ids), stop_ids=NEVER)))
    assert "".join(pieces) == text and not any("\ufffd" in piece for piece in pieces)
    assert "🙂" in "|".join(pieces).split("|")[-8:] or any(piece.endswith("🙂") for piece in pieces)
    script = iter(qwen.tokenizer.encode("🙂", add_special_tokens=False))
    cut = list(Engine(qwen).stream(Request((5,), 2, stop_ids=NEVER)))
    assert cut == [qwen.chat.decode(qwen.tokenizer.encode("🙂", add_special_tokens=False)[:2])]


def test_two_streams_and_a_call_may_take_turns(qwen):
    engine = Engine(qwen)
    requests = [Request(ids_of(qwen, seed, 6), 10, stop_ids=NEVER) for seed in range(3)]
    expected = [result.text for result in engine.generate(requests)]
    one, two = engine.stream(requests[0]), engine.stream(requests[1])
    texts = [next(one), next(two)]
    assert engine.generate(requests[2:])[0].text == expected[2]
    assert [texts[0] + "".join(one), texts[1] + "".join(two)] == expected[:2]


def test_the_models_own_attention_is_back_afterwards(qwen):
    before, engine = qwen.hf.config._attn_implementation, Engine(qwen)
    pieces = engine.stream(Request(ids_of(qwen, 1, 4), 8, stop_ids=NEVER))
    next(pieces)
    assert qwen.hf.config._attn_implementation == before
    engine.generate([Request(ids_of(qwen, 1, 4), 3)])
    assert qwen.hf.config._attn_implementation == before

    def interrupt(num_done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate([Request(ids_of(qwen, 1, 4), 3)], on_done=interrupt)
    assert qwen.hf.config._attn_implementation == before


def test_chat_shares_its_system_text(qwen):
    engine, system = Engine(qwen), "You answer in one word."
    prompt = tuple(
        qwen.chat.prompt([{"role": "system", "content": system}, {"role": "user", "content": "Hello there"}])
    )
    slots = make_cartridge(qwen, 6)
    (expected,) = engine.generate([Request(prompt, 12, cartridge=slots)])
    assert engine.chat("Hello there", system, [slots], max_new_tokens=12) == expected.text
    assert len(qwen.chat.system_prefix(system)) in [run.length for run in engine.batching.scheduler.blocks.runs]
    plain = tuple(qwen.chat.prompt([{"role": "user", "content": "Hello there"}]))
    assert engine.chat("Hello there", max_new_tokens=12) == engine.generate([Request(plain, 12)])[0].text


def test_chat_composes_several_cartridges(qwen):
    engine, one, two = Engine(qwen), make_cartridge(qwen, 6, seed=1), make_cartridge(qwen, 9, seed=2)
    prompt = tuple(qwen.chat.prompt([{"role": "user", "content": "Hello there"}]))
    (expected,) = engine.generate([Request(prompt, 12, cartridge=compose([one, two], qwen))])
    assert engine.chat("Hello there", cartridges=[one, two], max_new_tokens=12) == expected.text
    assert engine.shelf.composed([one, two]) is engine.shelf.composed([one, two])
