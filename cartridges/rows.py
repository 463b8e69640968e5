"""Which packed rows each training step sees: a function of the data, the seed and the step, so a run can be resumed."""

import math
from collections.abc import Callable

from cartridges.corpus import Corpus
from cartridges.dataset import Dataset
from cartridges.errors import InputError
from cartridges.model import Model
from cartridges.packing import PackedRow, epoch_rows, pack, pack_text
from cartridges.recipe import TrainConfig
from cartridges.rng import rng_of


class RowPlan:
    """Rows of every epoch in order, cut into steps that never cross an epoch."""

    def __init__(
        self,
        rows_of: Callable[[int], list[PackedRow]],
        heldout_rows: list[PackedRow],
        epochs: int,
        max_steps: int | None,
        rows_per_step: int,
    ):
        self.rows_of, self.heldout_rows, self.rows_per_step = rows_of, heldout_rows, rows_per_step
        self.starts: list[tuple[int, int]] = []  # of each step: epoch, first row
        self.epoch, self.rows = -1, []
        epoch = 0
        while (len(self.starts) < max_steps) if max_steps else (epoch < epochs):
            num_rows = len(self.epoch_rows(epoch))
            self.starts += [(epoch, first) for first in range(0, num_rows, rows_per_step)]
            epoch += 1
        self.num_steps = max_steps or len(self.starts)

    def epoch_rows(self, epoch: int) -> list[PackedRow]:
        """The rows of an epoch; those of the last one asked for are kept."""
        if self.epoch != epoch:
            self.epoch, self.rows = epoch, self.rows_of(epoch)
        return self.rows

    def step_rows(self, step: int) -> list[PackedRow]:
        """The rows of step `step`, from 0."""
        epoch, first = self.starts[step]
        return self.epoch_rows(epoch)[first : first + self.rows_per_step]

    @classmethod
    def of(cls, dataset: Dataset | None, model: Model, corpus: Corpus | None, config: TrainConfig) -> "RowPlan":
        """The plan of a training run. Raises InputError where there is nothing to train on, or rows do not fit."""
        if config.slots + config.row_len > model.window and config.objective == "text":
            raise InputError(
                f"given row_len={config.row_len} behind {config.slots} slots, expected at most the model's window of "
                f"{model.window} tokens together; give row_len={max(8, model.window - config.slots)}"
            )
        if config.objective == "text":
            return cls(*_text_rows(model, corpus, config), config.epochs, config.max_steps, config.rows_per_step)
        if dataset is None or not len(dataset.conversations):
            raise InputError(
                f"given no conversations, expected some for objective={config.objective}; synthesize first"
            )
        longest = max(len(conversation.token_ids) for conversation in dataset.conversations)
        if config.slots + longest > model.window:
            raise InputError(
                f"given {config.slots} slots and conversations of up to {longest} tokens, expected at most the model's "
                f"window of {model.window} tokens together; give fewer slots"
            )
        training, heldout = dataset.split(config.holdout_share, config.seed)
        if not len(training.conversations):
            raise InputError(
                f"given {len(dataset.conversations)} conversations and holdout_share={config.holdout_share}, which "
                "leaves none to train on; write more conversations, or hold out fewer"
            )
        conversations = list(training.conversations)
        return cls(
            lambda epoch: epoch_rows(conversations, config.row_len, config.seed, epoch),
            pack(list(heldout.conversations), config.row_len),
            config.epochs,
            config.max_steps,
            config.rows_per_step,
        )


def _text_rows(
    model: Model, corpus: Corpus | None, config: TrainConfig
) -> tuple[Callable[[int], list[PackedRow]], list[PackedRow]]:
    """The corpus' own text in rows; nothing of it is held out, since all of it has to be learned."""
    if corpus is None:
        raise InputError("given no corpus, expected one for objective=text")
    ids = model.ids(corpus.text)
    rows = pack_text(ids, min(config.row_len, max(2, len(ids))))

    def rows_of(epoch: int) -> list[PackedRow]:
        order = list(range(len(rows)))
        rng_of("text", config.seed, epoch).shuffle(order)
        return [rows[index] for index in order]

    if not math.fsum(row.num_targets for row in rows):
        raise InputError(f"given a corpus of {len(ids)} tokens, expected at least two")
    return rows_of, []
