"""Who is read together, who leaves when, and what is kept, in limits that are kept to."""

from cartridges.engine.engine import Engine
from cartridges.engine.request import Request
from cartridges.engine.rows import Rows
from cartridges.engine.runner import Runner
from cartridges.engine.scheduler import Limits, schedule
from tests.architectures import WINDOW
from tests.engine.judges import NEVER, ids_of, judge_generate, make_cartridge, mixed_requests


def test_rows_leave_at_their_stop_id_or_length(model, monkeypatch):
    cartridge = make_cartridge(model, WINDOW + 1)
    requests = mixed_requests(model, WINDOW, cartridge, 40, stop_ids=NEVER)
    lengths = [2, 40, 5, 9, 3, 4]
    whole = [result.token_ids for result in Engine(model).generate(requests)]
    stopped = [
        # the first stops at an id of its own; where that id came before, it stops there
        Request(**{**vars(request), "max_new_tokens": length, "stop_ids": frozenset(whole[i][2:3] if i == 0 else [-1])})
        for i, (request, length) in enumerate(zip(requests, lengths, strict=True))
    ]
    kept, done, keep = [], [], Rows.keep
    monkeypatch.setattr(Rows, "keep", lambda rows, index: (kept.append(len(index)), keep(rows, index)))
    results = Engine(model).generate(stopped, on_done=done.append)
    assert sum(done) == 6 and len(done) > 2
    assert kept and kept[-1] == 1, "the straggler ends alone"
    for i, (result, length) in enumerate(zip(results, lengths, strict=True)):
        expected = whole[i][:length]
        if i == 0 and whole[0][2] in expected:
            expected = expected[: expected.index(whole[0][2]) + 1]
        assert result.token_ids == expected


def test_batches_keep_to_their_limits(qwen, monkeypatch):
    sizes = []
    original = Runner.open

    def watched(runner, prefix, texts):
        sizes.append((len(texts), prefix.length + len(texts) * (max(map(len, texts)) + 4)))
        return original(runner, prefix, texts)

    monkeypatch.setattr(Runner, "open", watched)
    requests = [Request(ids_of(qwen, seed, 1 + seed % 17), 4, stop_ids=NEVER) for seed in range(40)]
    expected = [judge_generate(qwen, request) for request in requests]
    engine = Engine(qwen, max_batch_tokens=100)
    assert [result.token_ids for result in engine.generate(requests)] == expected
    assert sum(num_rows for num_rows, _ in sizes) == 40 and max(tokens for _, tokens in sizes) <= 100
    assert len(sizes) < 15
    sizes.clear()
    Engine(qwen, max_batch_tokens=10).generate([Request(ids_of(qwen, 1, 30), 4)])
    assert sizes == [(1, 34)], "what is too large for any batch runs alone"
    sizes.clear()
    Engine(qwen).generate([Request(ids_of(qwen, 1, 3), 1)] * 100)
    assert [num_rows for num_rows, _ in sizes] == [64, 36]


def test_batches_have_room_for_the_longest_reply():
    lengths = [(3, 50), (4, 1), (5, 1), (6, 1), (7, 1), (8, 40)]
    requests = [Request((5,) * length, num_new) for length, num_new in lengths]
    batches = schedule(requests, Limits(num_rows=4, num_tokens=120))
    assert sorted(number for batch in batches for number in batch) == list(range(6))
    for batch in batches:
        assert len(batch) * (max(lengths[i][0] for i in batch) + max(lengths[i][1] for i in batch)) <= 120
    assert batches == [[0, 1], [2, 3, 4], [5]]


def test_logits_are_made_for_targets_alone(qwen, monkeypatch):
    kept, forward = [], Runner.forward
    monkeypatch.setattr("cartridges.engine.runner.MAX_FORWARD_TOKENS", 8)
    monkeypatch.setattr(
        Runner, "forward", lambda runner, ids, rows, num: (kept.append(num), forward(runner, ids, rows, num))[1]
    )
    Engine(qwen).distributions(ids_of(qwen, 1, 18), ids_of(qwen, 2, 11))
    assert kept == [1, 1, 7, 4]  # 28 columns, of which the last 11 tell of targets


def test_a_prefix_is_read_once_and_kept_within_bounds(qwen):
    prefix = ids_of(qwen, 1, 20)
    requests = [Request(prefix + ids_of(qwen, seed, 3), 2, shared_len=20) for seed in range(2, 5)]
    engine = Engine(qwen)
    assert [result.num_cached_tokens for result in engine.generate(requests)] == [0, 20, 20]
    assert [result.num_cached_tokens for result in engine.generate(requests)] == [20, 20, 20]
    assert {result.num_prompt_tokens for result in engine.generate(requests)} == {23}
    num_bytes = engine.prefixes.num_bytes
    assert num_bytes == 2 * qwen.identity.kv_bytes(20)  # float32 here, two bytes a number there
    small = Engine(qwen, max_prefix_bytes=2 * num_bytes)
    for seed in range(5):
        small.generate([Request(ids_of(qwen, seed, 25), 1, shared_len=20)])
    assert len(small.prefixes.held) == 2
    assert [key[1][:1] for key in small.prefixes.held] == [ids_of(qwen, 3, 1), ids_of(qwen, 4, 1)]
    for seed in (3, 5):  # used again, and new: what goes is the one in between
        small.generate([Request(ids_of(qwen, seed, 25), 1, shared_len=20)])
    assert [key[1][:1] for key in small.prefixes.held] == [ids_of(qwen, 3, 1), ids_of(qwen, 5, 1)]
    none = Engine(qwen, max_prefix_bytes=0)
    assert [result.token_ids for result in none.generate(requests)] == [
        result.token_ids for result in engine.generate(requests)
    ]
    assert not none.prefixes.held


def test_cartridges_are_not_mixed_up(qwen):
    prompt = ids_of(qwen, 1, 6)
    one, two = make_cartridge(qwen, 9, seed=1), make_cartridge(qwen, 9, seed=2)
    requests = [Request(prompt, 8, cartridge=slots, stop_ids=NEVER, shared_len=4) for slots in (one, two, None, one)]
    engine = Engine(qwen)
    results = engine.generate(requests)
    assert [result.token_ids for result in results] == [judge_generate(qwen, request) for request in requests]
    assert len({tuple(result.token_ids) for result in results}) == 3


def test_a_cartridge_without_digest_is_read_as_it_is_now(qwen):
    slots = make_cartridge(qwen, 9, sealed=False)
    request, engine = Request(ids_of(qwen, 1, 6), 8, cartridge=slots, stop_ids=NEVER, shared_len=3), Engine(qwen)
    before = engine.generate([request])[0].token_ids
    for values in slots.values:
        values.mul_(-1)
    after = engine.generate([request])[0].token_ids
    assert after == judge_generate(qwen, request) != before
    assert not engine.prefixes.held
