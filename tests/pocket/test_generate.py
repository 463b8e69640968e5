"""Replies behind a text, against Hugging Face `generate` one by one."""

import pytest
import torch

from cartridges.engine.engine import Engine
from cartridges.model import load_model
from cartridges.pocket.generate import CUT, generate

SYSTEM = "Vivis Tevax takes fufaide. The room of Kudi Zikax is E-674."
MESSAGES = ["Hi", "What is the room of Kudi Zikax?", "Who takes fufaide? " * 6, "?"]


@pytest.fixture(scope="module")
def engine(tmp_path_factory, tiny_model, tiny_tokenizer):
    folder = tmp_path_factory.mktemp("model")
    tiny_model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return Engine(load_model(folder, "cpu"))


def one_by_one(engine: Engine, system: str, message: str, max_new_tokens: int) -> str:
    """The judge: no batch, no shared prefix, no padding."""
    hf, tokenizer = engine.model.hf, engine.model.tokenizer
    chat = [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": message}]
    ids = torch.tensor([tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)])
    out = hf.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False
    )
    new = out[0, ids.shape[1] :]
    ended = hf.config.eos_token_id in new
    return tokenizer.decode(new, skip_special_tokens=True) + ("" if ended else CUT)


@pytest.mark.parametrize("system", [SYSTEM, ""], ids=["behind a text", "alone"])
def test_greedy_replies_equal_generate(engine, system):
    replies = generate(engine, system, MESSAGES, max_new_tokens=12)
    assert replies == [one_by_one(engine, system, message, 12) for message in MESSAGES]
    assert len(set(replies)) > 1


def test_sampling_repeats_with_its_seed_and_varies_without(engine):
    first, again, other = (
        generate(engine, SYSTEM, MESSAGES, max_new_tokens=8, temperature=1.0, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_the_same_message_twice_is_drawn_twice(engine):
    replies = generate(engine, SYSTEM, MESSAGES[:1] * 8, max_new_tokens=8, temperature=1.0)
    assert len(set(replies)) > 1


def test_no_messages_give_no_replies(engine):
    assert generate(engine, SYSTEM, []) == []
