import random
from collections import Counter
from itertools import pairwise

import pytest

from cartridges.chunking import Chunk, ChunkConfig, Chunker
from cartridges.config import Config
from cartridges.corpus import Corpus
from cartridges.errors import ConfigError, InputError
from cartridges.rng import spread

MARKDOWN = """Preamble, before any heading.

# One

First paragraph.
Second line of it.

## Two ##
```python
# no heading

def f(): pass
```
#5 is no heading, nor is
    # this

~~~~ text
~~~
# none here
~~~~
###### Three
#
end
"""
PYTHON = '''"""Doc."""
import os

# What it is for
# in two lines
class A:
    x = 1

    def method(self):
        return 2

@decorated(
    1,
)
@again
def f():
    pass
async def g():
    # def inside
    definitely = 1

LATE = 3
'''
UNICODE = "naïve 🙂🙂👩‍👩‍👧 日本語のテキスト\n\n\n𝒳𝒴 e\u0301 \t ok\u2028z\ufeff ﷺ " * 6


def corpus_of(**texts: str) -> Corpus:
    return Corpus.from_texts({name.replace("__", "."): text for name, text in texts.items()})


@pytest.fixture(scope="module")
def mixed() -> Corpus:
    rng = random.Random(5)
    words = "the of to plant doctor figure\n \n\n ## tab\t ü 本 🙂 def".split(" ")
    noise = {f"noise__{number}": "".join(rng.choices(words, k=rng.randrange(1, 400))) + "x" for number in range(5)}
    lines = "".join(f"{'x ' * (number % 70)}{number}\n" for number in range(80))
    return corpus_of(a__md=MARKDOWN * 3, b__py=PYTHON * 4, c__txt=UNICODE, one__txt="x", long__csv=lines, **noise)


def train_tokenizer(kind: str):
    """Small fast tokenizers whose offsets are unlike those of bytes: white space left out, prefixed, or trimmed."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    if kind == "wordpiece":
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.normalizer = normalizers.BertNormalizer(lowercase=True)
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]"], show_progress=False)
    elif kind == "metaspace":
        made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        made.normalizer = normalizers.Sequence(
            [normalizers.NFKC(), normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        made.decoder = decoders.Metaspace()
        specials = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=specials, show_progress=False)
    else:
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        made.post_processor = processors.ByteLevel(trim_offsets=True)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([MARKDOWN, PYTHON], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made)


@pytest.fixture(scope="module", params=["pocket", "wordpiece", "metaspace", "trimmed"])
def tokenizer(request, tiny_tokenizer):
    return tiny_tokenizer if request.param == "pocket" else train_tokenizer(request.param)


class Judge:
    """Counts tokens of a chunk one by one, from the tokenizer's own offsets."""

    def __init__(self, corpus: Corpus, tokenizer, kind: str) -> None:
        self.corpus, self.kind = corpus, kind
        self.offsets = {
            d.path: tokenizer(d.text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
            for d in corpus
        }

    def check(self, chunk: Chunk, max_len: int) -> int:
        text = self.corpus.document(chunk.document).text
        assert 0 <= chunk.start < chunk.stop <= len(text)
        assert chunk.text == text[chunk.start : chunk.stop]
        if self.kind == "characters":
            length = len(chunk.text)
        else:
            length = sum(a < b and b > chunk.start and a < chunk.stop for a, b in self.offsets[chunk.document])
        assert length <= max_len
        return length


KINDS = ["tokens", "characters", "structure"]
LENGTHS = [(1, 40), (20, 100), (64, 64), (512, 4096)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("min_len", "max_len"), LENGTHS)
def test_cover_holds_every_document_once_in_order(mixed, tokenizer, kind, min_len, max_len):
    chunker = Chunker(mixed, ChunkConfig(kind=kind, min_len=min_len, max_len=max_len), tokenizer)
    judge = Judge(mixed, tokenizer, kind)
    rest = chunker.cover()
    for document in mixed:
        end = 0
        while end < len(document.text):
            chunk = rest.pop(0)
            assert (chunk.document, chunk.start) == (document.path, end)
            judge.check(chunk, max_len)
            end = chunk.stop
    assert rest == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("min_len", "max_len"), LENGTHS)
def test_samples_are_true_spans_and_follow_the_seed(mixed, tokenizer, kind, min_len, max_len):
    config = ChunkConfig(kind=kind, min_len=min_len, max_len=max_len)
    chunker, judge = Chunker(mixed, config, tokenizer), Judge(mixed, tokenizer, kind)
    rng, again = random.Random(3), random.Random(3)
    drawn = [chunker.sample(rng, rng.random()) for _ in range(150)]
    other = Chunker(mixed, config, tokenizer)
    assert drawn == [other.sample(again, again.random()) for _ in drawn]
    assert rng.random() == again.random()
    longest = 33 if kind == "tokens" else 0  # a cut may move by a character of several tokens
    for chunk in drawn:
        length = judge.check(chunk, max_len)
        if kind != "structure":
            text = mixed.document(chunk.document).text
            assert chunk.text == text or length >= min_len - longest


@pytest.mark.parametrize("run_len", [1, 30])
@pytest.mark.parametrize(("min_len", "max_len"), [(50, 200), (1, 1), (30, 60), (100, 2000)])
def test_ends_are_drawn_as_often_as_the_middle(min_len, max_len, run_len):
    num_chars, num_draws = 700, 12_000
    chunker = Chunker(corpus_of(a="x" * num_chars), ChunkConfig(kind="characters", min_len=min_len, max_len=max_len))
    rng, changes = random.Random(1), Counter()
    starts = [rng.random() for _ in range(num_draws // run_len)]  # of runs, as self-study's
    for number in range(num_draws):
        chunk = chunker.sample(rng, spread(number % run_len, starts[number // run_len]))
        changes[chunk.start] += 1
        changes[chunk.stop] -= 1
    covered = [0]
    for position in range(num_chars):
        covered.append(covered[-1] + changes[position])
    mean = sum(covered[1:]) / num_chars
    sigma = (mean * (1 - mean / num_draws)) ** 0.5
    assert max(abs(times - mean) for times in covered[1:]) < 5 * sigma


def test_the_same_holds_of_tokens(tiny_tokenizer):
    corpus = corpus_of(a="".join(f"the plant {number} of 本 ü\n" for number in range(60)))
    chunker = Chunker(corpus, ChunkConfig(min_len=20, max_len=120), tiny_tokenizer)
    rng, text = random.Random(2), corpus.text
    covered = Counter()
    for _ in range(4000):
        chunk = chunker.sample(rng, rng.random())
        covered.update(range(chunk.start, chunk.stop))
    mean = sum(covered.values()) / len(text)
    assert all(abs(covered[position] - mean) < 6 * mean**0.5 for position in range(len(text)))


def test_lengths_are_uniform_in_a_long_document():
    chunker = Chunker(corpus_of(a="x" * 200_000), ChunkConfig(kind="characters", min_len=100, max_len=399))
    rng = random.Random(0)
    lengths = [len(chunker.sample(rng, rng.random()).text) for _ in range(6000)]
    assert (min(lengths), max(lengths)) == (100, 399)
    thirds = Counter((length - 100) // 100 for length in lengths)
    assert all(abs(thirds[third] - 2000) < 5 * 2000**0.5 for third in range(3))


@pytest.mark.parametrize("kind", KINDS)
def test_documents_are_drawn_by_their_length(tiny_tokenizer, kind):
    texts = {"short": "the plant\n\n" * 5, "middle": "the plant\n\n" * 40, "long": "the plant\n\n" * 400}
    corpus = Corpus.from_texts(texts)
    chunker = Chunker(corpus, ChunkConfig(kind=kind, min_len=30, max_len=90), tiny_tokenizer)
    rng, num_draws = random.Random(4), 4000
    drawn = Counter(chunker.sample(rng, rng.random()).document for _ in range(num_draws))
    for path, num_tokens in chunker.num_tokens_of.items():
        expected = num_draws * num_tokens / chunker.num_tokens
        assert abs(drawn[path] - expected) < 5 * expected**0.5


def test_a_short_document_is_taken_whole(tiny_tokenizer):
    chunker = Chunker(corpus_of(a=MARKDOWN), ChunkConfig(), tiny_tokenizer)
    assert chunker.sample(random.Random(0), 0.5) == Chunk("a", 0, len(MARKDOWN), MARKDOWN) == chunker.cover()[0]


@pytest.mark.parametrize("num_chars", [701, 1199, 1300])
def test_no_piece_is_shorter_than_min_len_where_halves_would_be(num_chars):
    chunker = Chunker(corpus_of(a="x" * num_chars), ChunkConfig(kind="characters", min_len=600, max_len=700))
    assert all(600 <= len(chunker.sample(random.Random(n), n / 300).text) <= 700 for n in range(300))


def test_covering_chunks_are_of_about_one_length():
    chunker = Chunker(corpus_of(a="x" * 1001), ChunkConfig(kind="characters", min_len=1, max_len=500))
    assert [len(chunk.text) for chunk in chunker.cover()] == [334, 334, 333]


def pieces(chunker: Chunker) -> list[str]:
    return [chunk.text for chunk in chunker.cover()]


def structure(text: str, name: str, tokenizer, min_len: int = 1, max_len: int = 10_000) -> list[str]:
    config = ChunkConfig(kind="structure", min_len=min_len, max_len=max_len)
    return pieces(Chunker(Corpus.from_texts({name: text}), config, tokenizer))


@pytest.mark.parametrize("name", ["guide.md", "notes.txt", "README", "data.jsonl:3"])
def test_headings_begin_pieces_but_not_in_fences(tiny_tokenizer, name):
    found = structure(MARKDOWN, name, tiny_tokenizer)
    assert [piece.split("\n")[0] for piece in found] == [
        *("Preamble, before any heading.", "# One", "## Two ##", "###### Three", "#")
    ]
    assert "# none here\n~~~~\n" in found[2]


def test_an_open_fence_ends_with_the_text(tiny_tokenizer):
    text = "# A\n```\n# B\n\n``` c\n# D\n"
    assert structure(text, "a.md", tiny_tokenizer) == [text]
    assert len(structure(text.replace("``` c", "````"), "a.md", tiny_tokenizer)) == 2
    assert len(structure("# A\n```inline```\n# B\n", "a.md", tiny_tokenizer)) == 2


def test_definitions_begin_pieces_with_what_stands_above_them(tiny_tokenizer):
    found = structure(PYTHON, "a.py", tiny_tokenizer)
    assert [piece.split("\n")[0] for piece in found] == [
        *('"""Doc."""', "# What it is for", "@decorated(", "async def g():")
    ]
    assert found[2].endswith("@again\ndef f():\n    pass\n")


def test_other_code_is_cut_at_blank_lines(tiny_tokenizer):
    text = "# include\nint f() {\n\n  return 1;\n}\n\nint g();\n"
    assert structure(text, "a.c", tiny_tokenizer) == ["# include\nint f() {\n\n  return 1;\n}\n\n", "int g();\n"]
    num_tokens = len(tiny_tokenizer(text[: text.index("int g")])["input_ids"])
    assert structure(text, "a.c", tiny_tokenizer, max_len=num_tokens - 1)[:2] == [
        *("# include\nint f() {\n\n", "  return 1;\n}\n\n")
    ]


def test_without_headings_paragraphs_then_lines_then_windows(tiny_tokenizer):
    long = "the plant of the doctor " * 20
    text = f"\n\none\n \ntwo\nlines\n\n\n{long}\nend\n\nlast"
    paragraphs = structure(text, "a.txt", tiny_tokenizer)
    assert paragraphs == ["\n\none\n \n", "two\nlines\n\n\n", f"{long}\nend\n\n", "last"]
    found = structure(text, "a.txt", tiny_tokenizer, max_len=30)
    assert found[:2] == paragraphs[:2] and found[-2:] == ["end\n\n", "last"]
    assert len(found) > 6 and "".join(found) == text
    assert structure("one\ntwo\nthree", "a.txt", tiny_tokenizer) == ["one\ntwo\nthree"]


def test_long_sections_are_not_cut_in_fences_where_paragraphs_do(tiny_tokenizer):
    fence = "```\na = 1\n\nb = 2\n```\n\n"
    text = f"# A\n\n{'the plant ' * 10}\n\n{fence}{'the doctor ' * 10}\n"
    num_tokens = len(tiny_tokenizer(fence)["input_ids"])
    assert fence in structure(text, "a.md", tiny_tokenizer, max_len=max(num_tokens, 25))


@pytest.mark.parametrize(("min_len", "max_len"), [(10, 40), (30, 40), (40, 200)])
def test_neighbours_are_joined_up_to_min_len(tiny_tokenizer, min_len, max_len):
    text = "".join(f"# {number}\n\n{'the plant ' * (number % 5)}\n\n" for number in range(40))
    corpus = corpus_of(a__md=text)
    judge = Judge(corpus, tiny_tokenizer, "structure")
    chunks = Chunker(corpus, ChunkConfig(kind="structure", min_len=min_len, max_len=max_len), tiny_tokenizer).cover()
    lengths = [judge.check(chunk, max_len) for chunk in chunks]
    assert max(lengths) >= min_len and len(lengths) > 2
    for (first, second), length in zip(pairwise(chunks), lengths, strict=False):
        joined = Chunk("a.md", first.start, second.stop, text[first.start : second.stop])
        assert length >= min_len or judge.check(joined, 10_000) > max_len


def test_samples_of_structure_are_its_pieces_by_length(tiny_tokenizer):
    corpus = corpus_of(a__md="# A\n" + "the plant " * 50 + "\n# B\nshort\n", b__md="# C\n" + "the doctor " * 25)
    chunker = Chunker(corpus, ChunkConfig(kind="structure", min_len=1, max_len=1000), tiny_tokenizer)
    judge, rng, num_draws = Judge(corpus, tiny_tokenizer, "structure"), random.Random(0), 3000
    drawn = Counter(chunker.sample(rng, rng.random()) for _ in range(num_draws))
    assert set(drawn) == set(chunker.cover())
    for chunk, times in drawn.items():
        expected = num_draws * judge.check(chunk, 1000) / chunker.num_tokens
        assert abs(times - expected) < 5 * expected**0.5


@pytest.mark.parametrize("kind", KINDS)
def test_a_place_tells_where_in_the_corpus_a_chunk_stands(tiny_tokenizer, kind):
    corpus = Corpus.from_texts(dict.fromkeys("abcd", "the plant\n\n" * 100))
    chunker = Chunker(corpus, ChunkConfig(kind=kind, min_len=20, max_len=40), tiny_tokenizer)
    for place in (number / 400 for number in range(400)):
        chunk = chunker.sample(random.Random(0), place)
        stands = "abcd".index(chunk.document) + (chunk.start + chunk.stop) / 2 / len(corpus.documents[0].text)
        assert abs(stands - 4 * place) < 0.25  # about: pieces are as likely as each other, whatever they hold


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_counted(mixed, tokenizer, kind):
    chunker = Chunker(mixed, ChunkConfig(kind=kind), tokenizer)
    expected = {d.path: len(tokenizer(d.text, add_special_tokens=False)["input_ids"]) for d in mixed}
    assert chunker.num_tokens_of == expected
    assert chunker.num_tokens == sum(expected.values())


def test_a_slow_tokenizer_is_good_for_characters_only():
    from transformers import ByT5Tokenizer

    slow = ByT5Tokenizer()
    with pytest.raises(InputError) as caught:
        Chunker(corpus_of(a="text"), ChunkConfig(), slow)
    assert str(caught.value) == (
        "given the slow tokenizer ByT5Tokenizer, which does not tell where its tokens stand, "
        "expected a fast one for chunks of kind tokens; give kind=characters"
    )
    chunker = Chunker(corpus_of(a="tëxt"), ChunkConfig(kind="characters"), slow)
    assert (chunker.num_tokens, pieces(chunker)) == (5, ["tëxt"])


def test_without_a_tokenizer():
    expected = "given no tokenizer, expected one to count tokens with; give one, or kind=characters"
    with pytest.raises(InputError, match=expected):
        Chunker(corpus_of(a="text"), ChunkConfig())
    chunker = Chunker(corpus_of(a="text"), ChunkConfig(kind="characters"))
    assert pieces(chunker) == ["text"]
    with pytest.raises(InputError, match=expected):
        _ = chunker.num_tokens


def test_characters_of_more_tokens_than_a_chunk_may_have(tiny_tokenizer):
    with pytest.raises(InputError) as caught:
        Chunker(corpus_of(smile="so 🙂"), ChunkConfig(min_len=1, max_len=3), tiny_tokenizer)
    assert str(caught.value) == (
        "given max_len=3, expected at least 4, the tokens of '🙂' in smile, which cannot be divided; "
        "give a larger max_len"
    )
    assert len(pieces(Chunker(corpus_of(a="🙂" * 9), ChunkConfig(min_len=1, max_len=4), tiny_tokenizer))) == 9


def test_text_without_a_token():
    bert = train_tokenizer("wordpiece")
    with pytest.raises(InputError, match="without a single token, expected text that the tokenizer knows"):
        Chunker(corpus_of(a="\x01\x02"), ChunkConfig(), bert)
    chunker = Chunker(corpus_of(a="\x01\x02", b="text"), ChunkConfig(), bert)
    assert pieces(chunker) == ["\x01\x02", "text"]
    assert {chunker.sample(random.Random(seed), seed / 20).document for seed in range(20)} == {"b"}


@pytest.mark.parametrize(("min_len", "max_len"), [(1, 0), (512, 511), (0, 5), (-3, -1)])
def test_lengths_that_cannot_be(min_len, max_len):
    expected = f"given chunks of min_len={min_len} and max_len={max_len}, expected 1 <= min_len <= max_len; set both"
    with pytest.raises(ConfigError, match=expected):
        ChunkConfig(min_len=min_len, max_len=max_len)
    with pytest.raises(ConfigError, match=expected):
        ChunkConfig.resolve(overrides=[f"min_len={min_len}", f"max_len={max_len}"])


def test_the_configuration_is_one_of_ours():
    class Verb(Config):
        chunks: ChunkConfig = ChunkConfig(min_len=10)

    assert Verb.resolve(overrides=["chunks.max_len=20"]).chunks == ChunkConfig(min_len=10, max_len=20)
    with pytest.raises(ConfigError, match="given chunks of min_len=10 and max_len=2"):
        Verb.resolve(overrides=["chunks.max_len=2"])
    with pytest.raises(ConfigError, match=r"'chunks\.kind': given 'words'"):
        Verb.resolve(overrides=["chunks.kind=words"])
