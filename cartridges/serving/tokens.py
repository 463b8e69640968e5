"""Single tokens as text and as bytes, for the lists of logprobs."""

import json
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

BLANK = "\u2581"  # what SentencePiece writes for a space


class TokenTexts:
    """What each id of a tokenizer writes. A token may be part of a character; then its text has a stand-in for it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Look up how the tokenizer writes bytes."""
        backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        rules = json.loads(backend.to_str()) if backend is not None else {}
        decoder = rules.get("decoder") or {}
        kinds = {decoder.get("type"), *(part.get("type") for part in decoder.get("decoders", []))}
        self.tokenizer = tokenizer
        self.added = {index: token.content for index, token in tokenizer.added_tokens_decoder.items()}
        self.letters = byte_letters() if "ByteLevel" in kinds else {}
        self.bytes_of = lru_cache(maxsize=1 << 18)(self._bytes_of)

    def text_of(self, token: int) -> str:
        """The token as text."""
        return self.bytes_of(token).decode("utf-8", "replace")

    def _bytes_of(self, token: int) -> bytes:
        if token in self.added:
            return self.added[token].encode()
        try:
            piece: Any = self.tokenizer.convert_ids_to_tokens(token)
        except (IndexError, OverflowError):  # rows of the model's vocabulary that the tokenizer has no token for
            piece = None
        if piece is None:
            return b""
        if self.letters:
            return bytes(self.letters[letter] for letter in piece if letter in self.letters)
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(BLANK, " ").encode()


def byte_letters() -> dict[str, int]:
    """The letters that byte-level tokenizers write bytes with: printable ones stand for themselves, others from 256 on.

    >>> byte_letters()["A"], byte_letters()["\u0120"]
    (65, 32)
    """
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}
