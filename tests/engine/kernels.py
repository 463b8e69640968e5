"""What the flash kernels of CUDA and its graphs are documented to do, slowly and anywhere."""

from dataclasses import replace

import torch

from cartridges.engine.rows import Rows
from cartridges.engine.runner import Runner
from cartridges.engine.step import Together


def attend(q_tNH, k_cGH, v_cGH, scale, hidden_tc):
    """Attention of a few tokens in float64: [t, N, H] and logs [t, N]."""
    repeats = q_tNH.shape[1] // k_cGH.shape[1]
    keys, values = (part.double().repeat_interleave(repeats, 1) for part in (k_cGH, v_cGH))
    scores = torch.einsum("tnh,cnh->ntc", q_tNH.double(), keys) * scale
    scores = scores.masked_fill(hidden_tc, -torch.inf)
    return torch.einsum("ntc,cnh->tnh", scores.softmax(-1), values), scores.logsumexp(-1).T


def of_rows(q_TNH, k_RGCH, v_RGCH, first_q, first_k, used, longest, scale, window=None, causal=True):
    """As `flash.of_rows`: tokens are aligned with the last of the columns."""
    keys, values = (held.transpose(1, 2).flatten(0, 1) for held in (k_RGCH, v_RGCH))
    assert all(numbers.dtype == torch.int32 for numbers in (first_q, first_k, used))
    assert len(first_q) == len(first_k) == len(used) + 1 and first_q[-1] == len(q_TNH)
    outs, logs = [], []
    for row, num_used in enumerate(used.tolist()):
        q_tNH = q_TNH[first_q[row] : first_q[row + 1]]
        assert len(q_tNH) <= longest
        columns = slice(int(first_k[row]), int(first_k[row]) + num_used)
        device = q_TNH.device
        standing = torch.arange(num_used - len(q_tNH), num_used, device=device)[:, None]
        distance = standing - torch.arange(num_used, device=device)
        hidden = (distance < 0) & causal | (distance >= (window or num_used + 1))
        out, log = attend(q_tNH, keys[columns], values[columns], scale, hidden)
        outs.append(out)
        logs.append(log)
    return torch.cat(outs).to(q_TNH.dtype), torch.cat(logs).float()


def of_run(q_TNH, k_GPH, v_GPH, scale):
    """As `flash.of_run`."""
    hidden = torch.zeros(len(q_TNH), k_GPH.shape[1], dtype=torch.bool, device=q_TNH.device)
    out, log = attend(q_TNH, k_GPH.transpose(0, 1), v_GPH.transpose(0, 1), scale, hidden)
    return out.to(q_TNH.dtype), log.float()


def record(graphs, step):
    """As `Graphs._record`: the work of this very step is done again, in the places that it has now."""
    step = fixed(step)
    logits = graphs.forward(step).clone()
    return lambda: logits.copy_(graphs.forward(step)), logits


def fixed(step):
    """The step with the tensors that its rows have now, whatever they grow to."""

    def place(part):
        rows = Rows(part.held.size)
        rows.num_rows, rows.layers = part.held.num_rows, dict(part.held.layers)
        return replace(part, held=rows)

    depths = [[place(group) if isinstance(group, Together) else group for group in groups] for groups in step.depths]
    parts = {"bundles": [place(bundle) for bundle in step.bundles], "writes": [place(write) for write in step.writes]}
    return replace(step, depths=depths, **parts)


def emulate(monkeypatch):
    """Have engines made from now on work on any device as on CUDA."""
    make = Runner.__init__

    def make_async(runner, *given):
        make(runner, *given)
        runner.is_async = True

    monkeypatch.setattr(Runner, "__init__", make_async)
    monkeypatch.setattr("cartridges.engine.runner.has_flash", lambda device, dtype, head_sizes: True)
    monkeypatch.setattr("cartridges.engine.flash.of_rows", of_rows)
    monkeypatch.setattr("cartridges.engine.flash.of_run", of_run)
    monkeypatch.setattr("cartridges.engine.graphs.Graphs._record", record)
