"""Distributions as servers tell them, brought to rows of top-k logprobs. Shapes: M tokens, K entries."""

from collections.abc import Iterable, Sequence

import numpy as np

from cartridges.conversation import TopK
from cartridges.errors import FormatError

Entry = tuple[int, float]  # token id and logprob
TOKEN_ID = "token_id:"


class Malformed(ValueError):
    """A server's answer is not of the dialect that it was asked in; the client tells it as an InputError."""


def top_k_rows(rows: Sequence[Iterable[Entry]], k: int) -> TopK:
    """The K likeliest entries of each row, likeliest first; fewer for all where one row has fewer.

    Servers add the chosen token to a row that does not have it, and write rows in any order.
    """
    ordered = [sorted(set(row), key=lambda entry: (-entry[1], entry[0])) for row in rows]
    k = min([k, *map(len, ordered)])
    ids = np.array([[token for token, _ in row[:k]] for row in ordered], np.int64).reshape(len(ordered), k)
    logprobs = np.array([[logprob for _, logprob in row[:k]] for row in ordered], np.float32).reshape(len(ordered), k)
    return checked(ids, logprobs)


def checked(ids_MK: np.ndarray, logprobs_MK: np.ndarray) -> TopK:
    """The rows. Raises Malformed for what is no token id or no number."""
    if np.isnan(logprobs_MK).any() or (ids_MK < 0).any():
        raise Malformed("logprobs that are no numbers, or token ids below 0")
    try:
        return TopK(ids_MK, logprobs_MK)
    except FormatError as error:
        raise Malformed(str(error)) from error


def id_of(token: str) -> int:
    """The id in `token_id:17`. Raises Malformed for tokens that are told as texts."""
    digits = token.removeprefix(TOKEN_ID)
    if digits == token or not digits.isdecimal():
        raise Malformed(f"the token {token[:40]!r} instead of {TOKEN_ID}17")
    return int(digits)
