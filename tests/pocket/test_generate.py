"""Batched replies behind a shared text, against Hugging Face `generate` one by one."""

import pytest
import torch

from cartridges.pocket.generate import CUT, MAX_ROWS, generate, prompt_ids

SYSTEM = "Vivis Tevax takes fufaide. The room of Kudi Zikax is E-674."
MESSAGES = ["Hi", "What is the room of Kudi Zikax?", "Who takes fufaide? " * 6, "?"]


def one_by_one(model, tokenizer, system: str, message: str, max_new_tokens: int) -> str:
    """The judge: no batch, no shared prefix, no padding."""
    chat = [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": message}]
    ids = torch.tensor([prompt_ids(tokenizer, chat, reply=True)])
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False
    )
    new = out[0, ids.shape[1] :]
    ended = model.config.eos_token_id in new
    return tokenizer.decode(new, skip_special_tokens=True) + ("" if ended else CUT)


@pytest.mark.parametrize("system", [SYSTEM, ""], ids=["behind a text", "alone"])
def test_batched_greedy_replies_equal_generate(tiny_model, tiny_tokenizer, system):
    replies = generate(tiny_model, tiny_tokenizer, system, MESSAGES, max_new_tokens=12)
    assert replies == [one_by_one(tiny_model, tiny_tokenizer, system, message, 12) for message in MESSAGES]
    assert len(set(replies)) > 1


def test_more_messages_than_rows_come_back_in_order(tiny_model, tiny_tokenizer):
    messages = [MESSAGES[index % len(MESSAGES)] for index in range(MAX_ROWS + 3)]
    replies = generate(tiny_model, tiny_tokenizer, SYSTEM, messages, max_new_tokens=4)
    assert replies == [one_by_one(tiny_model, tiny_tokenizer, SYSTEM, message, 4) for message in messages]


def test_sampling_repeats_with_its_seed_and_varies_without(tiny_model, tiny_tokenizer):
    first, again, other = (
        generate(tiny_model, tiny_tokenizer, SYSTEM, MESSAGES, max_new_tokens=8, temperature=1.0, seed=seed)
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_a_reply_ends_at_its_end_token(tiny_model, tiny_tokenizer, monkeypatch):
    whole = generate(tiny_model, tiny_tokenizer, SYSTEM, MESSAGES[:1], max_new_tokens=10)[0]
    chat = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": MESSAGES[0]}]
    ids = torch.tensor([prompt_ids(tiny_tokenizer, chat, reply=True)])
    new = tiny_model.generate(input_ids=ids, max_new_tokens=10, do_sample=False)[0, ids.shape[1] :].tolist()
    monkeypatch.setattr(tiny_model.config, "eos_token_id", new[4])
    cut = generate(tiny_model, tiny_tokenizer, SYSTEM, MESSAGES[:1], max_new_tokens=10)[0]
    assert cut == tiny_tokenizer.decode(new[: new.index(new[4])], skip_special_tokens=True)
    assert whole.endswith(CUT)
    assert not cut.endswith(CUT)
    assert len(cut) < len(whole)


def test_no_messages_give_no_replies(tiny_model, tiny_tokenizer):
    assert generate(tiny_model, tiny_tokenizer, SYSTEM, []) == []
