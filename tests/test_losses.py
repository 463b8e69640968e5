"""Chunked losses against the textbook's, dense and in float64, with autograd's gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cartridges.errors import InputError
from cartridges.losses import argmax_M, default_chunk_len, distillation_loss, next_token_loss

V, D, M, K = 50, 16, 23, 5
ABSENT = -torch.inf


def problem(num_entries: int = K, num_targets: int = M, seed: int = 0, sharpness: float = 1.0):
    """Hidden states that need a gradient, a vocabulary matrix, and top-k rows of a random teacher."""
    generator = torch.Generator().manual_seed(seed)
    hidden_MD = torch.randn(num_targets, D, generator=generator).requires_grad_()
    weight_VD = torch.randn(V, D, generator=generator) * sharpness
    teacher = (2 * torch.randn(num_targets, V, generator=generator)).log_softmax(-1).topk(num_entries, sorted=True)
    return hidden_MD, weight_VD, teacher.indices.int(), teacher.values


def dense_loss(hidden, weight, ids, logprobs, softcap=None, scale=1.0, rest_bucket=True, weights_M=None):
    """The divergence over entries and, as one more outcome, all other tokens together."""
    logits = scale * (hidden @ weight.T)
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    q, log_q = logits.softmax(-1), logits.log_softmax(-1)
    loss_M = torch.zeros(len(hidden), dtype=torch.float64)
    for m in range(len(hidden)):
        present = logprobs[m] > ABSENT
        entries, log_p = ids[m][present].long(), logprobs[m][present].double()
        loss_M[m] = (log_p.exp() * (log_p - log_q[m, entries])).sum()
        rest = 1 - log_p.exp().sum()
        others = torch.ones(len(weight), dtype=torch.bool).index_fill(0, entries, False)
        if rest_bucket and others.any() and rest > 1e-7:  # less is rounding of float32 logprobs
            loss_M[m] += rest * (rest.log() - q[m, others].sum().log())
    return (loss_M if weights_M is None else loss_M * weights_M).sum()


def judged(hidden, weight, *teacher, **options):
    """Value and gradient by the dense loss in float64."""
    hidden = hidden.detach().double().requires_grad_()
    loss = dense_loss(hidden, weight.double(), *teacher, **options)
    loss.backward()
    return loss.detach(), hidden.grad


def ours(hidden, weight, *teacher, **options):
    hidden = hidden.detach().clone().requires_grad_()
    loss = distillation_loss(hidden, weight, *teacher, **options)
    loss.backward()
    return loss.detach(), hidden.grad


def assert_same(mine, reference, rtol=1e-5, atol=2e-5):
    for one, other in zip(mine, reference, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=rtol, atol=atol)


@pytest.mark.parametrize("num_entries", [1, K, V])
@pytest.mark.parametrize("chunk_len", [1, 7, M, 1000, None])
def test_it_is_the_dense_one_in_every_chunking(num_entries, chunk_len):
    given = problem(num_entries)
    assert_same(ours(*given, chunk_len=chunk_len), judged(*given))


@pytest.mark.parametrize(
    "options",
    [
        {"softcap": 3.0},
        {"scale": 0.25},
        {"scale": 1.5, "softcap": 2.0},
        {"rest_bucket": False},
        {"weights_M": torch.linspace(0, 3, M)},
        {"weights_M": torch.linspace(0, 3, M), "scale": 2.0, "softcap": 5.0, "rest_bucket": False},
    ],
    ids=str,
)
def test_it_is_the_dense_one_with_every_option(options):
    given = problem()
    assert_same(ours(*given, chunk_len=4, **options), judged(*given, **options))


def test_a_divergence_worked_out_by_hand():
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()  # hidden of an identity matrix
    ids, logprobs = torch.tensor([[1, 0]]), torch.tensor([[0.5, 0.3]]).log()
    expected = 0.5 * torch.tensor(0.5 / 0.25).log() + 0.3 * torch.tensor(0.3 / 0.5).log()
    expected += 0.2 * torch.tensor(0.2 / 0.25).log()
    torch.testing.assert_close(distillation_loss(logits, torch.eye(4), ids, logprobs), expected)


def test_finite_differences_agree():
    hidden, weight, ids, logprobs = problem(num_targets=4)
    inputs = hidden.detach().double().requires_grad_()

    def loss_of(hidden_MD):
        return distillation_loss(
            hidden_MD, weight.double(), ids, logprobs.double(), softcap=4.0, scale=0.5, chunk_len=3
        )

    assert torch.autograd.gradcheck(loss_of, (inputs,))


def test_a_student_that_agrees_has_neither_loss_nor_gradient():
    hidden, weight, _, _ = problem()
    teacher = (hidden.detach() @ weight.T).log_softmax(-1).topk(K)
    loss, gradient = ours(hidden, weight, teacher.indices, teacher.values)
    assert abs(loss) < 1e-5
    assert gradient.abs().max() < 1e-5


@pytest.mark.parametrize("num_entries", [1, K, V])
def test_a_teacher_without_rest(num_entries):
    hidden, weight, ids, logprobs = problem(num_entries)
    given = (hidden, weight, ids, logprobs.log_softmax(-1))
    assert_same(ours(*given), judged(*given))


def test_entries_that_are_the_whole_vocabulary_leave_nothing_to_the_bucket():
    hidden, weight, ids, logprobs = problem(V)
    given = (hidden, weight, ids, logprobs - 0.1)  # rounded down, or of a larger vocabulary
    assert_same(ours(*given), judged(*given))


@pytest.mark.parametrize("others", [-120.0, -1000.0, ABSENT])
def test_a_teacher_that_is_sure(others):
    hidden, weight, ids, logprobs = problem()
    logprobs = torch.full_like(logprobs, others)
    logprobs[:, 0] = 0.0
    cross_entropy = F.cross_entropy(hidden.double() @ weight.double().T, ids[:, 0].long(), reduction="sum")
    assert_same(ours(hidden, weight, ids, logprobs), (cross_entropy, torch.autograd.grad(cross_entropy, hidden)[0]))


@pytest.mark.parametrize("rest", [0.0, 1e-6, 1e-4, 0.3])
@pytest.mark.parametrize("gap", [20.0, 60.0, 300.0])
def test_a_student_whose_mass_is_all_in_the_entries(rest, gap):
    """1 - sum q is 0 in float32 and in float64; the loss and its gradient are those of the logarithms."""
    logits = torch.randn(3, V, generator=torch.Generator().manual_seed(1))
    logits[:, :2] += gap
    ids = torch.tensor([[0, 1]] * 3)
    logprobs = torch.tensor([[(1 - rest) * 0.75, (1 - rest) * 0.25]] * 3).log()
    mine, reference = ours(logits, torch.eye(V), ids, logprobs), judged(logits, torch.eye(V), ids, logprobs)
    assert_same(mine, reference, atol=1e-4 if rest == 0 else 2e-5)  # float32 leaves about 1e-7 of rest, times `gap`
    if rest == 0.3:
        torch.testing.assert_close(mine[1][:, 2:].sum(1), torch.full((3,), -rest), rtol=1e-4, atol=0)


def test_a_student_whose_mass_is_all_in_one_other_token():
    logits = torch.zeros(1, V)
    logits[0, 7] = 200.0
    given = (logits, torch.eye(V), torch.tensor([[0, 1]]), torch.tensor([[0.6, 0.3]]).log())
    assert_same(ours(*given), judged(*given))


def test_absent_entries_leave_no_mark():
    hidden, weight, ids, logprobs = problem()
    ids[0, 2] = 0  # the id of absent entries is also a present one
    ids[0, [0, 1, 3, 4]] = torch.tensor([9, 8, 7, 6], dtype=torch.int32)
    padded = (F.pad(ids, (0, 3)), F.pad(logprobs, (0, 3), value=ABSENT))
    assert_same(ours(hidden, weight, *padded), ours(hidden, weight, ids, logprobs), rtol=1e-6, atol=1e-6)
    assert_same(ours(hidden, weight, *padded), judged(hidden, weight, ids, logprobs))


def test_a_target_with_absent_entries_only_has_no_loss():
    hidden, weight, ids, logprobs = problem()
    loss, gradient = ours(hidden, weight, ids, torch.full_like(logprobs, ABSENT))
    assert loss == 0
    assert gradient.abs().max() < 1e-6


def test_no_targets_give_zero_with_a_gradient():
    hidden_TD = torch.randn(9, D, requires_grad=True)
    nowhere = torch.zeros(0, dtype=torch.int64)
    _, weight, ids, logprobs = problem(num_targets=0)
    for loss in (
        distillation_loss(hidden_TD[nowhere], weight, ids, logprobs),
        next_token_loss(hidden_TD[nowhere], weight, nowhere),
    ):
        hidden_TD.grad = None
        loss.backward()
        assert loss.item() == 0
        assert torch.equal(hidden_TD.grad, torch.zeros(9, D))
    assert argmax_M(hidden_TD[nowhere], weight).shape == (0,)


def test_the_gradient_goes_on_to_what_made_the_hidden_states():
    hidden, weight, ids, logprobs = problem()
    matrix = torch.eye(D, requires_grad=True)
    (distillation_loss(hidden.detach() @ matrix, weight, ids, logprobs, chunk_len=5) / 7).backward()
    _, gradient = judged(hidden, weight, ids, logprobs)
    assert_same([matrix.grad], [hidden.detach().double().T @ gradient / 7])


def test_without_gradients_none_is_made():
    hidden, weight, ids, logprobs = problem()
    with torch.no_grad():
        loss = distillation_loss(hidden, weight.requires_grad_(), ids, logprobs)
    assert not loss.requires_grad
    assert not distillation_loss(hidden.detach(), weight.detach(), ids, logprobs).requires_grad
    assert_same([loss], [judged(hidden, weight.detach(), ids, logprobs)[0]])


@pytest.mark.parametrize("softcap", [None, 4.0])
def test_bf16_and_autocast_multiply_in_bf16_and_go_on_in_float32(softcap):
    hidden, weight, ids, logprobs = problem()
    short = (hidden.bfloat16(), weight.bfloat16())
    rounded = (short[0].float(), short[1].float(), ids, logprobs)
    reference = judged(*rounded, softcap=softcap)
    mine = ours(*short, ids, logprobs, softcap=softcap, chunk_len=7)
    assert (mine[0].dtype, mine[1].dtype) == (torch.float32, torch.bfloat16)
    assert_same(mine, reference, rtol=0.02, atol=0.02)  # logits of about 4 have 8 bits
    with torch.autocast("cpu", torch.bfloat16):
        cast = ours(hidden, weight, ids, logprobs, softcap=softcap, chunk_len=7)
    assert cast[1].dtype == torch.float32
    assert_same([cast[0]], [mine[0]], rtol=0, atol=0)
    assert_same([cast[1].bfloat16()], [mine[1]], rtol=0, atol=0)


def test_a_broken_student_is_not_hidden():
    hidden, weight, ids, logprobs = problem()
    with torch.no_grad():
        hidden[3, 0] = torch.nan
    assert ours(hidden, weight, ids, logprobs, chunk_len=2)[0].isnan()
    assert next_token_loss(hidden, weight, ids[:, 0]).isnan()


@pytest.mark.parametrize("weights_M", [None, torch.linspace(0, 2, M)])
@pytest.mark.parametrize("chunk_len", [4, None])
def test_next_token_loss_is_cross_entropy(weights_M, chunk_len):
    hidden, weight, ids, _ = problem(num_entries=1)
    targets = ids[:, 0].long()
    dense = F.cross_entropy(0.5 * hidden.double() @ weight.double().T, targets, reduction="none")
    dense = dense.sum() if weights_M is None else (dense * weights_M).sum()
    loss = next_token_loss(hidden, weight, targets, scale=0.5, chunk_len=chunk_len, weights_M=weights_M)
    gradients = [torch.autograd.grad(value, hidden)[0] for value in (loss, dense)]
    assert_same([loss, gradients[0]], [dense, gradients[1]])


def test_a_likely_token_keeps_the_digits_of_its_loss():
    logits = torch.tensor([[24.0, 0.0, 0.0]])
    loss = next_token_loss(logits, torch.eye(3), torch.tensor([0]))
    torch.testing.assert_close(loss.item(), 2 * 3.775134544e-11, rtol=1e-5, atol=0)  # log(1 + 2 exp(-24))


@pytest.mark.parametrize("chunk_len", [1, 4, None])
def test_argmax_is_the_dense_one(chunk_len):
    hidden, weight, _, _ = problem()
    assert torch.equal(argmax_M(hidden, weight, chunk_len=chunk_len), (hidden @ weight.T).argmax(-1))


def test_default_chunks_are_of_64_mb_and_not_tiny():
    assert default_chunk_len(2048) == 8192
    assert default_chunk_len(151936) * 151936 * 4 <= 64 * 2**20 < (default_chunk_len(151936) + 1) * 151936 * 4
    assert default_chunk_len(10**7) == 16


class Blocks(TorchDispatchMode):
    """Watches every tensor that is made: the largest, and how much memory large ones hold at a time."""

    def __init__(self, block_numel: int):
        super().__init__()
        self.block_numel = block_numel
        self.largest = 0
        self.num_made = 0
        self.most_bytes = 0
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in (leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)):
            self.largest = max(self.largest, tensor.numel())
            storage = tensor.untyped_storage()
            if tensor.numel() >= self.block_numel // 2:
                ref = StorageWeakRef(storage)
                self.alive[ref.cdata] = (ref, storage.nbytes())
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        self.most_bytes = max(self.most_bytes, sum(num_bytes for _, num_bytes in self.alive.values()))
        return out


def watched(function, num_targets: int, vocab_size: int, block_numel: int, dtype=torch.float32, **options) -> Blocks:
    hidden = torch.randn(num_targets, 2, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocab_size, 2, dtype=dtype)
    ids = torch.arange(num_targets * K).reshape(num_targets, K) % vocab_size
    logprobs = torch.full(ids.shape, 0.1).log()
    with Blocks(block_numel) as blocks:
        function(hidden, weight, ids, logprobs, **options).backward()
    return blocks


@pytest.mark.parametrize(
    ("options", "num_blocks"), [({}, 1.0), ({"dtype": torch.bfloat16}, 1.5), ({"softcap": 3.0, "scale": 2.0}, 2.0)]
)
def test_one_chunk_of_logits_is_alive_at_a_time(options, num_blocks):
    vocab_size, chunk_len = 500, 16
    for num_targets in (16, 64, 640):
        blocks = watched(
            distillation_loss, num_targets, vocab_size, chunk_len * vocab_size, chunk_len=chunk_len, **options
        )
        assert blocks.largest == chunk_len * vocab_size
        assert blocks.most_bytes <= num_blocks * 4 * chunk_len * vocab_size


def test_the_watch_sees_a_dense_loss():
    blocks = watched(dense_loss_float32, 64, 500, 16 * 500)
    assert blocks.largest == 64 * 500
    assert blocks.most_bytes >= 2 * 4 * 64 * 500


def dense_loss_float32(hidden, weight, ids, logprobs):
    log_q = (hidden @ weight.T).log_softmax(-1).gather(1, ids)
    return (logprobs.exp() * (logprobs - log_q)).sum()


def test_wrong_input_is_told():
    hidden, weight, ids, logprobs = problem()
    tall = [tensor.repeat(1, 11) for tensor in (ids, logprobs)]
    with pytest.raises(
        InputError, match=r"^given K=55 teacher entries a target, expected at most the vocabulary's V=50"
    ):
        distillation_loss(hidden, weight, *tall)
    with pytest.raises(InputError, match=r"^given the token id 50, expected ids from 0 to 49, .* another model\?$"):
        distillation_loss(hidden, weight, ids.clamp(min=50), logprobs)
    with pytest.raises(InputError, match=r"^given the token id -1, expected ids from 0 to 49"):
        next_token_loss(hidden, weight, torch.full((M,), -1))
    with pytest.raises(InputError, match=r"^given teacher ids of shape \(22, 5\) .* expected both \[M, K\] with M=23"):
        distillation_loss(hidden, weight, ids[1:], logprobs[1:])
    with pytest.raises(InputError, match=r"logprobs of shape \(23, 4\), expected both \[M, K\]"):
        distillation_loss(hidden, weight, ids, logprobs[:, 1:])
    with pytest.raises(InputError, match=r"K at least 1$"):
        distillation_loss(hidden, weight, ids[:, :0], logprobs[:, :0])
    with pytest.raises(InputError, match=r"^given weights of shape \(5,\), expected \(23,\), one a target$"):
        distillation_loss(hidden, weight, ids, logprobs, weights_M=torch.ones(5))
    with pytest.raises(InputError, match=r"shape \(23, 16\) and .* \(50, 15\), expected \[M, D\] and \[V, D\]"):
        distillation_loss(hidden, weight[:, 1:], ids, logprobs)
    with pytest.raises(InputError, match=r"^given the chunk_len 0, expected at least 1"):
        argmax_M(hidden, weight, chunk_len=0)
    with pytest.raises(InputError, match=r"^given the softcap 0.0, expected a positive number"):
        distillation_loss(hidden, weight, ids, logprobs, softcap=0.0)


def test_only_hidden_states_are_trained():
    hidden, weight, ids, logprobs = problem()
    with pytest.raises(InputError, match=r"^weight_VD requires a gradient, .* freeze it: requires_grad_\(False\)$"):
        distillation_loss(hidden, weight.clone().requires_grad_(), ids, logprobs)
    with pytest.raises(InputError, match=r"^teacher_logprobs_MK requires a gradient"):
        distillation_loss(hidden, weight, ids, logprobs.requires_grad_())
