"""Packed rows behind slots, judged by transformers' own cache, one conversation at a time."""

import pytest
import torch

from cartridges import attention
from cartridges.attention import PackedPrefix, attend, packed_hidden
from cartridges.errors import InputError
from cartridges.model import prefix_kv
from tests.architectures import ARCHITECTURES, tiny
from tests.reference import logits_behind, logits_of

NUM_SLOTS = 11  # more than the sliding window
LENGTHS = (5, 9, 1, 13)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request, tiny_tokenizer):
    return tiny(request.param, tiny_tokenizer)


@pytest.fixture(scope="module")
def texts():
    generator = torch.Generator().manual_seed(3)
    draw = torch.randint(4, 500, (NUM_SLOTS + sum(LENGTHS),), generator=generator).tolist()
    context, rest = draw[:NUM_SLOTS], draw[NUM_SLOTS:]
    return context, [[rest.pop() for _ in range(length)] for length in LENGTHS]


def leaves(tensors):
    return [tensor.clone().requires_grad_() for tensor in tensors]


def packed_logits(model, keys, values, conversations):
    row = torch.tensor([token for ids in conversations for token in ids])
    hidden = packed_hidden(model, row, PackedPrefix(keys, values, [len(ids) for ids in conversations]))
    head = model.head
    logits = hidden @ head.weight_VD.T * head.scale
    return head.softcap * torch.tanh(logits / head.softcap) if head.softcap else logits


def test_slots_of_a_real_prefix_give_its_logits(model, texts):
    context, conversations = texts
    keys, values = prefix_kv(model, context)
    wanted = torch.cat([logits_of(model, context + ids)[NUM_SLOTS:] for ids in conversations])
    with attend(model):
        found = packed_logits(model, keys, values, conversations)
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("way", ["kernel", "scores", "repeated slots"])
def test_packed_rows_give_loss_and_gradients_of_separate_conversations(model, texts, checkpointing, way, monkeypatch):
    if way != "kernel":
        monkeypatch.setattr(attention, "MIN_SCORES", {})
    if way == "repeated slots":
        monkeypatch.setattr(attention, "MAX_SCORES", 0)
    context, conversations = texts
    slots = prefix_kv(model, context)
    weights = torch.randn(sum(LENGTHS), len(model.tokenizer), generator=torch.Generator().manual_seed(5))
    keys, values = (leaves(part) for part in slots)
    with attend(model, checkpointing):
        loss = (packed_logits(model, keys, values, conversations).log_softmax(-1) * weights).sum()
        loss.backward()
    keys_apart, values_apart = (leaves(part) for part in slots)
    apart = torch.cat([logits_behind(model, keys_apart, values_apart, ids) for ids in conversations])
    loss_apart = (apart.log_softmax(-1) * weights).sum()
    loss_apart.backward()
    assert loss.item() == pytest.approx(loss_apart.item(), rel=1e-5)
    for ours, theirs in zip(keys + values, keys_apart + values_apart, strict=True):
        assert theirs.grad.abs().sum() > 0
        assert (ours.grad - theirs.grad).abs().max() <= 1e-5 * max(1.0, theirs.grad.abs().max().item())


def judge(parts, row, scale, window=None, bias_GP=None, softcap=None):
    """The same in float64, one token at a time."""
    q_NTH, k_GTH, v_GTH, slot_keys_GPH, slot_values_GPH = (part.double() for part in parts)
    repeats, num_slots = len(q_NTH) // len(k_GTH), slot_keys_GPH.shape[1]
    out, start = [], 0
    for length in row.lengths:
        for place in range(length):
            seen = slice(start, start + place + 1)
            keys = torch.cat([slot_keys_GPH, k_GTH[:, seen]], 1).repeat_interleave(repeats, 0)
            values = torch.cat([slot_values_GPH, v_GTH[:, seen]], 1).repeat_interleave(repeats, 0)
            scores = (keys @ q_NTH[:, start + place, :, None])[..., 0] * scale
            if softcap:
                scores = softcap * torch.tanh(scores / softcap)
            if bias_GP is not None:
                scores[:, :num_slots] = scores[:, :num_slots] + bias_GP.double().repeat_interleave(repeats, 0)
            if window:
                scores = scores[:, -window:].softmax(-1)
                values = values[:, -window:]
            else:
                scores = scores.softmax(-1)
            out.append((scores[:, None] @ values)[:, 0])
        start += length
    return torch.stack(out, 1)


@pytest.mark.parametrize(
    ("way", "options"),
    [
        *((way, {}) for way in (attention.attend_once, attention.attend_expanded)),
        *((way, {"bias": True, "window": 12}) for way in (attention.attend_once, attention.attend_expanded)),
        *((way, {"window": 4}) for way in (attention.attend_once, attention.attend_expanded)),
        (attention.attend_once, {"softcap": 2.0}),  # a cap is there for this way only
        (attention.attend_once, {"softcap": 2.0, "bias": True, "window": 12}),
    ],
)
@pytest.mark.parametrize("num_slots", [0, 6])
def test_both_ways_give_what_a_token_at_a_time_does(way, options, num_slots):
    generator, lengths = torch.Generator().manual_seed(1), [1, 9, 2, 30]
    shapes = [(6, 42, 8), (2, 42, 8), (2, 42, 8), (2, num_slots, 8), (2, num_slots, 8), (2, num_slots)]
    drawn = [torch.randn(shape, generator=generator) for shape in shapes]
    goal = torch.randn(6, 42, 8, generator=generator)

    def gradients(attend_by):
        *parts, bias = leaves(drawn)
        row = PackedPrefix([parts[3]], [parts[4]], lengths)
        told = {key: value for key, value in options.items() if key != "bias"}
        told["bias_GP"] = bias if options.get("bias") else None
        out = attend_by(parts, row, 0.4, **told)
        (out * goal).sum().backward()
        return [out, *(part.grad for part in parts), *([bias.grad] if options.get("bias") else [])]

    found = gradients(lambda parts, row, *rest, **told: way(*parts, row, *rest, **told))
    for ours, theirs in zip(found, gradients(judge), strict=True):
        assert torch.allclose(ours.double(), theirs.double(), atol=2e-5)


def test_order_and_neighbours_do_not_matter(model, texts):
    context, conversations = texts
    keys, values = prefix_kv(model, context)
    with attend(model):
        together = packed_logits(model, keys, values, conversations)
        other_way = packed_logits(model, keys, values, conversations[::-1])
    assert torch.allclose(together[: LENGTHS[0]], other_way[-LENGTHS[0] :], atol=2e-4)


def test_the_model_is_given_back_as_it_was(model, texts):
    context, conversations = texts
    before = logits_of(model, context)
    keys, values = prefix_kv(model, context)
    with pytest.raises(RuntimeError, match="stop"), attend(model, checkpointing=True):
        raise RuntimeError("stop")
    assert torch.equal(logits_of(model, context), before)
    assert not any(module.training for module in model.hf.modules())
    with attend(model, checkpointing=True):
        packed_logits(model, keys, values, conversations)
    assert torch.equal(logits_of(model, context), before)


def test_wrong_lengths_are_told(model, texts):
    context, _ = texts
    keys, values = prefix_kv(model, context)
    with attend(model), pytest.raises(InputError, match="given conversations of 7 tokens for a row of 3"):
        packed_hidden(model, torch.tensor([5, 6, 7]), PackedPrefix(keys, values, [3, 4]))


def test_a_forward_pass_without_a_row_is_told(model):
    with attend(model), pytest.raises(InputError, match="needs a packed row"):
        model.hf(input_ids=torch.tensor([[5, 6]]), use_cache=False)
