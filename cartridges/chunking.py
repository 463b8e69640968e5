"""Chunks: pieces of a corpus's documents, short enough to be shown while a conversation is written.

Lengths are counted in units: the tokens of the document's own tokenisation, made once, or its characters. A cut between
two tokens stands where no character is divided; white space that no token covers goes with what follows.

How `sample` draws a chunk of kind "tokens" or "characters": a document, in proportion to its units; a length L, uniform
in [min_len, max_len]; the document whole if it has at most L units. Otherwise it is cut at a, a + L, a + 2L, ... with a
uniform in [0, L), and one of the pieces is drawn, each as likely as any other. Document and piece follow from one
number, its place, so that places which are spread evenly give chunks which are. A first or last piece shorter than
min_len is joined with its neighbour, and the two are halved where that is more than max_len. As the pieces hold each
unit once, each is in the chunk with the same probability, at the ends of a document as in its middle. Two exceptions:
where max_len < 2 * min_len and halves would be too short, an end piece is extended over its neighbour instead; and cuts
move to whole characters.
"""

import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import PurePosixPath
from random import Random
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from cartridges.config import Config
from cartridges.corpus import Corpus, Document
from cartridges.errors import ConfigError, InputError
from cartridges.log import track

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]  # the first character and the one behind the last

PYTHON_KINDS = set(".py .pyi .pyx .pxd".split())
CODE_KINDS = set(
    ".bash .bat .c .cc .cfg .clj .conf .cpp .cs .css .dart .el .erl .ex .exs .f90 .go .h .hpp .hs .html .ini .java .jl"
    " .js .json .jsx .kt .lua .m .ml .php .pl .proto .ps1 .r .rb .rs .scala .scss .sh .sql .swift .tcl .toml .ts .tsx"
    " .vue .xml .yaml .yml .zig .zsh".split()
)
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_HEADING = re.compile(r" {0,3}#{1,6}(?:[ \t\n]|$)")
_FENCE = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})")
_DEFINITION = re.compile(r"(?:def|class|async\s+def|cdef|cpdef)\b")


class ChunkConfig(Config):
    """How long chunks are and where documents are cut."""

    kind: Literal["tokens", "characters", "structure"] = Field(
        default="tokens", description="structure: at headings, definitions and blank lines, lengths in tokens"
    )
    min_len: int = Field(default=512, description="tokens; characters for kind characters")
    max_len: int = Field(default=4096, description="the same; lengths are drawn between the two")

    @model_validator(mode="after")
    def _lengths_fit(self) -> Self:
        if not 1 <= self.min_len <= self.max_len:
            raise ConfigError(
                f"given chunks of min_len={self.min_len} and max_len={self.max_len}, "
                "expected 1 <= min_len <= max_len; set both"
            )
        return self


@dataclass(frozen=True)
class Chunk:
    """A piece of a document: `text` is the document's `text[start:stop]`."""

    document: str
    start: int
    stop: int
    text: str


@dataclass(frozen=True)
class Ruler:
    """Where the units of one text stand: unit i covers the characters starts[i]:stops[i], both never falling."""

    starts: Sequence[int]
    stops: Sequence[int]
    num_chars: int

    @property
    def num_units(self) -> int:
        """Tokens or characters of the whole text."""
        return len(self.starts)

    def count(self, start: int, stop: int) -> int:
        """Units that have a part in these characters."""
        return max(0, bisect_left(self.starts, stop) - bisect_right(self.stops, start))

    def position(self, unit: int) -> int:
        """The character at which to cut in front of a unit."""
        if unit <= 0:
            return 0
        return self.stops[unit - 1] if unit < self.num_units else self.num_chars

    def may_cut(self, unit: int) -> bool:
        """Whether no character is divided by a cut in front of the unit."""
        return not 0 < unit < self.num_units or self.stops[unit - 1] <= self.starts[unit]

    def cut_before(self, unit: int) -> int:
        """The last possible cut at the unit or before it."""
        while not self.may_cut(unit):
            unit -= 1
        return max(unit, 0)

    def cut_after(self, unit: int) -> int:
        """The first possible cut behind the unit."""
        unit += 1
        while not self.may_cut(unit):
            unit += 1
        return min(unit, self.num_units)

    def windows(self, start: int, stop: int, max_len: int) -> Iterator[Span]:
        """Consecutive spans of about the same length and at most `max_len` units, of whole characters."""
        while (num_units := self.count(start, stop)) > max_len:
            first = bisect_right(self.stops, start)
            num_windows = -(-num_units // max_len)
            end = first + -(-num_units // num_windows)
            cut = self.position(self.cut_before(end))
            if cut <= start:
                cut = self.position(self.cut_after(end))
            yield start, cut
            start = cut
        yield start, stop


class Chunker:
    """Cuts the documents of a corpus into chunks. Needs no tokenizer for kind "characters"."""

    def __init__(self, corpus: Corpus, config: ChunkConfig, tokenizer: "PreTrainedTokenizerBase | None" = None) -> None:
        """Tokenise every document once. Raises InputError where a tokenizer is missing, slow or cuts too coarsely."""
        self.corpus, self.config, self.tokenizer = corpus, config, tokenizer
        self._num_tokens: dict[str, int] = {}
        if config.kind == "characters":
            lengths = {document.path: len(document.text) for document in corpus}
            self._rulers = {path: Ruler(range(num), range(1, num + 1), num) for path, num in lengths.items()}
        else:
            documents = track(corpus.documents, "tokenising documents")
            self._rulers = {document.path: self._token_ruler(document) for document in documents}
        self._pieces: list[tuple[Document, Span]] = []
        if config.kind == "structure":
            for document in corpus:
                spans = split_by_structure(document, self._rulers[document.path], config.min_len, config.max_len)
                self._pieces += [(document, span) for span in spans]
        weights = [self._rulers[document.path].count(*span) for document, span in self._pieces]
        self._ends = list(accumulate(weights or [ruler.num_units for ruler in self._rulers.values()]))
        if not self._ends or not self._ends[-1]:
            raise InputError("given a corpus without a single token, expected text that the tokenizer knows")

    def sample(self, rng: Random, place: float) -> Chunk:
        """A chunk, drawn as the head of this module says; of kind "structure", by its share of the tokens.

        `place`, drawn from 0 up to 1, tells about where in the corpus it stands.
        """
        unit = place * self._ends[-1]
        drawn = min(bisect_right(self._ends, unit), len(self._ends) - 1)
        if self._pieces:
            document, span = self._pieces[drawn]
        else:
            document = self.corpus.documents[drawn]
            first = self._ends[drawn - 1] if drawn else 0
            span = self._draw_span(self._rulers[document.path], rng, (unit - first) / (self._ends[drawn] - first))
        return _chunk(document, span)

    def cover(self) -> list[Chunk]:
        """Consecutive chunks of at most max_len that hold every character of the corpus once, in order."""
        if self._pieces:
            return [_chunk(document, span) for document, span in self._pieces]
        return [
            _chunk(document, span)
            for document in self.corpus
            for span in self._rulers[document.path].windows(0, len(document.text), self.config.max_len)
        ]

    @cached_property
    def num_tokens_of(self) -> dict[str, int]:
        """Tokens of each document, by its path, without special tokens."""
        if self.config.kind != "characters":
            return self._num_tokens
        tokenizer = self._required_tokenizer()
        return {d.path: len(tokenizer(d.text, add_special_tokens=False, verbose=False).input_ids) for d in self.corpus}

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole corpus."""
        return sum(self.num_tokens_of.values())

    def _required_tokenizer(self) -> "PreTrainedTokenizerBase":
        if self.tokenizer is None:
            raise InputError("given no tokenizer, expected one to count tokens with; give one, or kind=characters")
        return self.tokenizer

    def _token_ruler(self, document: Document) -> Ruler:
        tokenizer = self._required_tokenizer()
        if not tokenizer.is_fast:
            raise InputError(
                f"given the slow tokenizer {type(tokenizer).__name__}, which does not tell where its tokens stand, "
                f"expected a fast one for chunks of kind {self.config.kind}; give kind=characters"
            )
        encoded = tokenizer(document.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        self._num_tokens[document.path] = len(encoded["input_ids"])
        ruler = make_ruler(encoded["offset_mapping"], len(document.text))
        self._check_fineness(document, ruler)
        return ruler

    def _check_fineness(self, document: Document, ruler: Ruler) -> None:
        """Raise InputError where more than max_len tokens share a character."""
        borders = zip(ruler.stops, ruler.starts[1:], strict=False)
        cuts = [unit for unit, (stop, start) in enumerate(borders, start=1) if stop <= start]
        first, end = max(pairwise([0, *cuts, ruler.num_units]), key=lambda units: units[1] - units[0])
        if end - first > self.config.max_len:
            text = document.text[ruler.position(first) : ruler.position(end)]
            raise InputError(
                f"given max_len={self.config.max_len}, expected at least {end - first}, the tokens of {text[:20]!r} "
                f"in {document.path}, which cannot be divided; give a larger max_len"
            )

    def _draw_span(self, ruler: Ruler, rng: Random, place: float) -> Span:
        """A span of one text, by the rule at the head of this module; `place` says which of the pieces."""
        min_len, max_len, num_units = self.config.min_len, self.config.max_len, ruler.num_units
        length = rng.randint(min_len, max_len)
        if num_units <= length:
            return 0, ruler.num_chars
        cuts = [0, *range(rng.randrange(length) or length, num_units, length), num_units]
        _join_short_ends(cuts, min_len, max_len)
        drawn = min(int(place * (len(cuts) - 1)), len(cuts) - 2)
        first = min(cuts[drawn], num_units - min_len)
        end = max(cuts[drawn + 1], first + min_len)
        first = ruler.cut_before(first)
        start, stop = ruler.position(first), ruler.position(ruler.cut_before(end))
        if stop <= start:
            stop = ruler.position(ruler.cut_after(end))
        if ruler.count(start, stop) > max_len:  # the start moved to the front of a character of many tokens
            stop = ruler.position(ruler.cut_before(first + max_len))
        return start, stop


def make_ruler(offsets: Sequence[Span], num_chars: int) -> Ruler:
    """The ruler of the tokens at `offsets`, but for tokens that stand for no character."""
    wide = [(start, stop) for start, stop in offsets if start < stop]
    starts = array("q", accumulate((start for start, _ in reversed(wide)), min))
    starts.reverse()
    return Ruler(starts, array("q", accumulate((stop for _, stop in wide), max)), num_chars)


def _chunk(document: Document, span: Span) -> Chunk:
    start, stop = span
    return Chunk(document.path, start, stop, document.text[start:stop])


def _join_short_ends(cuts: list[int], min_len: int, max_len: int) -> None:
    """Change `cuts` so that the pieces at both ends have `min_len` to `max_len` units, where they can."""
    for outer, inner, next_one in ((0, 1, 2), (-1, -2, -3)):
        if len(cuts) > 2 and abs(cuts[inner] - cuts[outer]) < min_len:
            joined = abs(cuts[next_one] - cuts[outer])
            if joined <= max_len:
                del cuts[inner]
            elif joined >= 2 * min_len:
                cuts[inner] = (cuts[outer] + cuts[next_one]) // 2


def split_by_structure(document: Document, ruler: Ruler, min_len: int, max_len: int) -> list[Span]:
    """Consecutive spans of at most `max_len` tokens, cut at the document's own borders.

    Cut at every heading or top-level definition, without those at blank lines; what is still too long at blank lines,
    then at lines, then anywhere. Then each span shorter than `min_len` is joined with the next ones while they fit.
    """
    whole = (0, len(document.text))
    borders = _borders(document)
    while len(borders) > 2 and not borders[0]:
        del borders[0]
    merged: list[Span] = []
    for start, stop in _split(ruler, whole, borders, max_len, cut_all=True):
        if merged and ruler.count(*merged[-1]) < min_len and ruler.count(merged[-1][0], stop) <= max_len:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    if len(merged) > 1 and ruler.count(*merged[-1]) < min_len and ruler.count(merged[-2][0], whole[1]) <= max_len:
        merged[-2:] = [(merged[-2][0], whole[1])]
    return merged


def _split(ruler: Ruler, span: Span, borders: list[list[int]], max_len: int, cut_all: bool = False) -> Iterator[Span]:
    """The span itself where it fits, else what its strongest borders make of it, each split by the weaker ones."""
    if ruler.count(*span) <= max_len and not cut_all:
        yield span
    elif not borders:
        yield from ruler.windows(*span, max_len)
    else:
        inside = borders[0][bisect_right(borders[0], span[0]) : bisect_left(borders[0], span[1])]
        for piece in pairwise((span[0], *inside, span[1])):
            yield from _split(ruler, piece, borders[1:], max_len)


def _borders(document: Document) -> list[list[int]]:
    """Where lines start, from the strongest to the weakest.

    Headings or definitions; behind blank lines; the same where it is in a fence or, in code, indented; all other lines.
    """
    kind = PurePosixPath(document.path).suffix.lower()
    is_python, is_code = kind in PYTHON_KINDS, kind in PYTHON_KINDS | CODE_KINDS
    borders: list[list[int]] = [[], [], [], []]
    fence = ""  # the characters that opened the one we are in
    lead = -1  # start of the comments and decorators right above
    decorated = behind_blank = begun = False
    for found in _LINE.finditer(document.text):
        start, line = found.start(), found[0].rstrip("\n")
        if not line.strip():
            behind_blank = True
            lead = lead if decorated else -1
            continue
        mark = "" if is_code or not (match := _FENCE.match(line)) else match[1]
        rank = 3
        if behind_blank:
            rank = 2 if fence or (is_code and line[0].isspace()) else 1
        if is_python and line[0] in "#@":
            lead = start if lead < 0 else lead
            decorated = decorated or line[0] == "@"
        elif is_python and _DEFINITION.match(line):
            start, rank = (lead, 0) if lead >= 0 else (start, 0)
            lead, decorated = -1, False
        elif not decorated:
            lead = -1
        if not is_code and not fence and _HEADING.match(line):
            rank = 0
        if begun or rank == 0:
            borders[rank].append(start if begun else 0)
        if fence:
            closes = mark.startswith(fence) and not line.strip().strip(fence[0])
            fence = "" if closes else fence
        else:
            fence = mark
        begun, behind_blank = True, False
    return borders
