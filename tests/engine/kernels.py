"""What the flash kernels of CUDA and its graphs are documented to do, slowly and anywhere."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cartridges.engine.runner import Runner


def attend(q_tNH, k_cGH, v_cGH, scale, hidden_tc):
    """Attention of a few tokens in float64: [t, N, H] and logs [t, N]."""
    repeats = q_tNH.shape[1] // k_cGH.shape[1]
    keys, values = (part.double().repeat_interleave(repeats, 1) for part in (k_cGH, v_cGH))
    scores = torch.einsum("tnh,cnh->ntc", q_tNH.double(), keys) * scale
    scores = scores.masked_fill(hidden_tc, -torch.inf)
    return torch.einsum("ntc,cnh->tnh", scores.softmax(-1), values), scores.logsumexp(-1).T


@torch.library.custom_op("cartridges_tests::of_rows", mutates_args=())
def rows_op(
    q_TNH: torch.Tensor,
    k_RGCH: torch.Tensor,
    v_RGCH: torch.Tensor,
    first_q: torch.Tensor,
    first_k: torch.Tensor,
    used: torch.Tensor,
    longest: int,
    scale: float,
    window: int | None,
    causal: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
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


@torch.library.custom_op("cartridges_tests::of_run", mutates_args=())
def run_op(
    q_TNH: torch.Tensor, k_GPH: torch.Tensor, v_GPH: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    hidden = torch.zeros(len(q_TNH), k_GPH.shape[1], dtype=torch.bool, device=q_TNH.device)
    out, log = attend(q_TNH, k_GPH.transpose(0, 1), v_GPH.transpose(0, 1), scale, hidden)
    return out.to(q_TNH.dtype), log.float().clone()


def of_rows(q_TNH, k_RGCH, v_RGCH, first_q, first_k, used, longest, scale, window=None, causal=True):
    """As `flash.of_rows`: tokens are aligned with the last of the columns."""
    return rows_op(q_TNH, k_RGCH, v_RGCH, first_q, first_k, used, longest, scale, window, causal)


def of_run(q_TNH, k_GPH, v_GPH, scale):
    """As `flash.of_run`."""
    return run_op(q_TNH, k_GPH, v_GPH, scale)


class Recorder(TorchDispatchMode):
    """Every operation with its very tensors. As on a device, nothing may ask for a number while it records."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert "_local_scalar_dense" not in str(func), "a number was asked for"
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out


def tensors(values):
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


def record(graphs, step):
    """As `Graphs._record`: operations are done again on the tensors that they had, and no Python is run."""
    with Recorder() as recorder:
        logits = graphs.written(graphs.forward(step))

    def replay():
        for func, args, kwargs, out in recorder.calls:
            given = {tensor.untyped_storage().data_ptr() for tensor in tensors((args, kwargs))}
            made = [tensor for tensor in tensors(out) if tensor.untyped_storage().data_ptr() not in given]
            if made or func._schema.is_mutable:
                found = tensors(func(*args, **kwargs))
                for old, new in zip(made, found[-len(made) :] if made else [], strict=True):
                    old.copy_(new)

    return replay, logits


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
