import json
import os
import random
from pathlib import Path

import pytest

from cartridges.corpus import Corpus, Document
from cartridges.errors import InputError


def fill(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def texts(corpus: Corpus) -> dict[str, str]:
    return {document.path: document.text for document in corpus}


def refused(*paths: str | Path, **options) -> str:
    with pytest.raises(InputError) as caught:
        Corpus.from_path(*paths, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def docs(tmp_path):
    return fill(
        tmp_path / "docs",
        {"b.md": "# B\n", "a/z.txt": "last\n", "a/b/c.py": "x = 1\n", "a.md": "# A\n", ".git/config": "hidden"},
    )


def test_a_folder_is_read_recursively_in_order(docs):
    corpus = Corpus.from_path(docs)
    assert list(texts(corpus)) == ["a/b/c.py", "a/z.txt", "a.md", "b.md"]
    assert corpus.document("a/z.txt") == Document("a/z.txt", "last\n")
    assert (len(corpus), corpus.num_chars) == (4, sum(len(text) for text in texts(corpus).values()))
    assert corpus.text == "x = 1\n\n\nlast\n\n\n# A\n\n\n# B\n"


def test_the_order_of_creation_changes_nothing(tmp_path):
    files = {f"{name}/{number}.txt": f"{name}{number}" for name in ("x", "y-", "y", "Y") for number in range(5)}
    digests = set()
    for seed in range(3):
        shuffled = random.Random(seed).sample(list(files.items()), len(files))
        digests.add(Corpus.from_path(fill(tmp_path / str(seed), dict(shuffled))).digest)
    assert len(digests) == 1


def test_the_digest_sees_every_path_text_and_border():
    one = Corpus.from_texts({"a": "bc", "d": "e"})
    assert one.digest == Corpus.from_texts({"a": "bc", "d": "e"}).digest
    others = [{"a": "b", "d": "e"}, {"ab": "c", "d": "e"}, {"d": "e", "a": "bc"}, {"a": "bcde"}]
    assert len({one.digest, *(Corpus.from_texts(other).digest for other in others)}) == 5


def test_a_single_file_keeps_its_name(docs):
    assert list(texts(Corpus.from_path(docs / "a.md"))) == ["a.md"]
    assert list(texts(Corpus.from_path(str(docs / "a.md"), docs / "a" / "z.txt"))) == ["a.md", "z.txt"]


def test_several_roots_are_told_apart(tmp_path):
    fill(tmp_path, {"x/docs/a.md": "1", "y/docs/a.md": "2", "z/a.md": "3"})
    assert texts(Corpus.from_path(tmp_path / "y", tmp_path / "x")) == {"y/docs/a.md": "2", "x/docs/a.md": "1"}
    roots = [tmp_path / name for name in ("x/docs", "y/docs", "z/a.md")]
    assert texts(Corpus.from_path(*roots)) == {"x/docs/a.md": "1", "y/docs/a.md": "2", "z/a.md": "3"}


def test_a_root_inside_of_another_is_read_once(docs):
    corpus = Corpus.from_path(docs, docs / "a", docs)
    assert list(texts(corpus)) == ["docs/a/b/c.py", "docs/a/z.txt", "docs/a.md", "docs/b.md"]
    assert corpus.skipped["already read"] == ["a"]


def test_the_name_of_the_current_folder_is_a_name(docs, monkeypatch):
    monkeypatch.chdir(docs)
    assert list(texts(Corpus.from_path("."))) == ["a/b/c.py", "a/z.txt", "a.md", "b.md"]
    assert list(texts(Corpus.from_path(".", "a/../b.md")))[2:] == ["docs/a.md", "docs/b.md"]


@pytest.mark.parametrize(
    ("include", "exclude", "left"),
    [
        (["*.md"], [], ["a.md", "b.md"]),
        ("*.md", [], ["a.md", "b.md"]),
        (["a/*"], [], ["a/b/c.py", "a/z.txt"]),
        (["a"], [], ["a/b/c.py", "a/z.txt"]),
        (["a/b/", "./b.md"], [], ["a/b/c.py", "b.md"]),
        (["**/*.txt", "**/*.md"], [], ["a/z.txt", "a.md", "b.md"]),
        (["z.txt"], [], ["a/z.txt"]),
        ([], ["*.md"], ["a/b/c.py", "a/z.txt"]),
        ([], ["a"], ["a.md", "b.md"]),
        ([], ["a/b", "b.md"], ["a/z.txt", "a.md"]),
        (["*.md", "*.py"], ["a.*"], ["a/b/c.py", "b.md"]),
        ([], ["[abz].??"], ["a/b/c.py", "a/z.txt"]),
    ],
)
def test_patterns(docs, include, exclude, left):
    assert list(texts(Corpus.from_path(docs, include=include, exclude=exclude))) == left


def test_patterns_hold_below_each_root_and_for_files(docs):
    both = Corpus.from_path(docs / "a", docs / "b.md", docs / "a.md", include=["b/*", "*.md"], exclude=["a.md"])
    assert list(texts(both)) == ["a/b/c.py", "b.md"]


def test_a_pattern_that_fits_nothing_is_named(docs):
    message = refused(docs, include=["*.md", "*.mdx"])
    assert message == f"given the include pattern '*.mdx', expected one that fits a file of {docs}"
    assert refused(docs / "a", exclude=["*"]) == (
        f"{docs / 'a'}: no file in it that the exclude patterns leave, expected text, Markdown, code or JSON"
    )


def test_hidden_files_and_folders_are_counted_once(docs):
    fill(docs, {".git/objects/a": "x", "a/__pycache__/c.pyc": b"\0", "node_modules/p/index.js": "x", ".env": "SECRET"})
    corpus = Corpus.from_path(docs)
    assert list(texts(corpus)) == ["a/b/c.py", "a/z.txt", "a.md", "b.md"]
    assert sorted(corpus.skipped["hidden"]) == [".env", ".git", "a/__pycache__", "node_modules"]
    assert list(texts(Corpus.from_path(docs / ".env"))) == [".env"]


def test_lines_end_in_line_feeds(tmp_path):
    fill(tmp_path, {"a.txt": b"one\r\ntwo\rthree\n"})
    assert Corpus.from_path(tmp_path).text == "one\ntwo\nthree\n"
    assert Corpus.from_texts({"a": "one\r\ntwo"}).text == "one\ntwo"


GERMAN = "Der Bär füllt die Straße, weil es nicht anders geht.\n"
QUOTED = "“quoted” text – 5 €, and some more words"


@pytest.mark.parametrize(
    ("content", "text", "encoding"),
    [
        (GERMAN.encode("latin-1"), GERMAN, "cp1252"),
        (QUOTED.encode("cp1252"), QUOTED, "cp1252"),
        (b"a control \x81 that cp1252 lacks, and \xe4", "a control \x81 that cp1252 lacks, and ä", "latin-1"),
        (GERMAN.encode("utf-8-sig"), GERMAN, "utf-8-sig"),
        (b"\xff\xfe" + GERMAN.encode("utf-16-le"), GERMAN, "utf-16"),
        (b"\xfe\xff" + GERMAN.encode("utf-16-be"), GERMAN, "utf-16"),
        (GERMAN.encode("utf-32"), GERMAN, "utf-32"),
    ],
)
def test_encodings_are_told(tmp_path, content, text, encoding):
    corpus = Corpus.from_path(fill(tmp_path, {"a.txt": content, "b.txt": "plain"}))
    assert corpus.document("a.txt").text == text
    assert corpus.decoded_as == {encoding: ["a.txt"]}
    assert corpus.summary().endswith(f"; decoded: 1 as {encoding}")


def test_a_few_broken_bytes_do_not_turn_utf8_into_latin1(tmp_path):
    content = "für, über, öfter, Bär".encode() + b"\xff" + " größer".encode()
    corpus = Corpus.from_path(fill(tmp_path, {"a.txt": content}))
    assert corpus.text == "für, über, öfter, Bär\ufffd größer"
    assert corpus.replaced == {"a.txt": 1}
    assert corpus.decoded_as == {}
    assert corpus.summary() == "1 document, 29 characters; replaced: 1 broken character"


@pytest.mark.parametrize(
    "content",
    [
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        b"text and a \0 in it",
        b"\xff\xfeA",  # UTF-16 cut in the middle of a character
        "Привет, как дела? Это русский текст.".encode("cp1251"),
        bytes(random.Random(0).randrange(1, 256) for _ in range(3000)),
        b"%PDF-1.4\n1 0 obj\n",
    ],
)
def test_binary_files_are_skipped_and_counted(tmp_path, content):
    fill(tmp_path, {"data/a.bin": content, "b.txt": "text"})
    corpus = Corpus.from_path(tmp_path)
    assert texts(corpus) == {"b.txt": "text"}
    assert corpus.skipped == {"binary": ["data/a.bin"]}
    assert corpus.summary() == "1 document, 4 characters; skipped: 1 binary"
    assert refused(tmp_path / "data") == (
        f"{tmp_path / 'data'}: no text left to read, skipped: 1 binary (a.bin); "
        "save texts as UTF-8 and turn PDF, Word and the like into text first"
    )


def test_nothing_there(tmp_path):
    fill(tmp_path, {"handbook/a.md": "x"})
    expected = "expected a file or folder of documents"
    assert refused(tmp_path / "handbok") == (
        f"given '{tmp_path / 'handbok'}', {expected}; there is none there; did you mean 'handbook'?"
    )
    assert refused(tmp_path / "q" / "r") == f"given '{tmp_path / 'q' / 'r'}', {expected}; there is none there"
    assert refused(tmp_path / "handbook" / "a.md" / "b").endswith("it cannot be opened: Not a directory")
    assert "it cannot be opened: embedded null" in refused("a\0b")
    assert refused("x" * 5000).endswith("it cannot be opened: File name too long")
    assert refused("") == f"given '', {expected}; the name is empty"
    assert refused() == "given no path, expected at least one file or folder of documents"


def test_an_empty_folder(tmp_path):
    assert refused(tmp_path) == f"{tmp_path}: no file in it, expected text, Markdown, code or JSON"
    fill(tmp_path, {".git/HEAD": "x"})
    assert refused(tmp_path).endswith("no text left to read, skipped: 1 hidden (.git); give hidden files by name")


def test_empty_files_are_counted(tmp_path):
    fill(
        tmp_path,
        {"a.txt": "", "b.txt": " \n\t\n", "c.json": "", "d.jsonl": "\n\n", "e.json": "[]", "f.md": b"\xef\xbb\xbf"},
    )
    assert refused(tmp_path).startswith(
        f"{tmp_path}: no text left to read, skipped: 6 empty (a.txt, b.txt, c.json, d.jsonl, e.json, ...)"
    )
    fill(tmp_path, {"g.md": "g"})
    assert Corpus.from_path(tmp_path).summary().startswith("1 document, 1 character; skipped: 6 empty")


def test_large_files_are_counted_and_the_way_out_told(tmp_path):
    fill(tmp_path, {"big.txt": "12345678901", "small.txt": "1234567890"})
    corpus = Corpus.from_path(tmp_path, max_file_bytes=10)
    assert (list(texts(corpus)), corpus.skipped) == (["small.txt"], {"too large": ["big.txt"]})
    with (tmp_path / "huge.txt").open("wb") as file:
        file.truncate(200_000_000)
    assert refused(tmp_path / "huge.txt") == (
        f"{tmp_path / 'huge.txt'}: no text left to read, skipped: 1 too large (huge.txt); "
        "give a max_file_bytes above 50,000,000"
    )


def test_json_holds_one_text_or_many(tmp_path):
    fill(
        tmp_path,
        {
            "a.json": '"only a text\\r\\n"',
            "b.json": '["one", "two"]',
            "c.json": '[{"title": "T 1", "text": "one"}, {"content": "two"}, {"id": 7, "body": "three"}]',
            "d.json": '{"name":"Bär","list":[1]}',
            "e.json": '[{"text": "one"}, {"no": "text"}]',
            "f.json": '{"text": "whole"}',
            "g.json": "[1, 2]",
        },
    )
    found = texts(Corpus.from_path(tmp_path))
    assert json.loads(found.pop("e.json")) == [{"text": "one"}, {"no": "text"}]
    assert found == {
        "a.json": "only a text\n",
        "b.json:1": "one",
        "b.json:2": "two",
        "c.json:T 1": "one",
        "c.json:2": "two",
        "c.json:7": "three",
        "d.json": '{\n  "name": "Bär",\n  "list": [\n    1\n  ]\n}',
        "f.json": "whole",
        "g.json": "[\n  1,\n  2\n]",
    }


def test_json_lines_are_named_by_line_or_by_name(tmp_path):
    table = [
        ('{"text": "first"}', "1", "first"),
        ('{"path": "guide/a.md", "text": "second"}\r', "guide/a.md", "second"),
        ('"a\u2028text"', "3", "a\u2028text"),
        ('{"id": "x", "text": "fourth"}', "x", "fourth"),
        ('{"id": "x", "text": "same id"}', "x:5", "same id"),
        ('{"title": "  two\\n words ", "content": "sixth"}', "two words", "sixth"),
        ('{"id": 8, "text": "named as a later line"}', "8", "named as a later line"),
        ('{"text": "eighth"}', "8:8", "eighth"),
        ('\n{"messages": []}', "10", '{\n  "messages": []\n}'),
    ]
    corpus = Corpus.from_path(fill(tmp_path, {"in/f.jsonl": "\n".join(line for line, _, _ in table)}))
    assert texts(corpus) == {f"in/f.jsonl:{name}": text for _, name, text in table}


def test_malformed_json_is_counted_by_line(tmp_path):
    nested, number = "[" * 100_000, "9" * 5000
    lines = ['{"text": "good"}', '{"text": "bad"', nested, number, '{"text": ""}', "NaN,"]
    fill(tmp_path, {"a.jsonl": "\n".join(lines), "b.json": '{\n"a": 1,\n}', "deep.json": nested})
    corpus = Corpus.from_path(tmp_path)
    assert texts(corpus) == {"a.jsonl:1": "good"}
    assert corpus.skipped == {
        "malformed JSON": ["a.jsonl:2", "a.jsonl:3", "a.jsonl:4", "a.jsonl:6", "b.json:3", "deep.json:1"],
        "empty": ["a.jsonl:5"],
    }
    assert corpus.summary() == "1 document, 4 characters; skipped: 6 malformed JSON, 1 empty"
    assert refused(tmp_path / "b.json").endswith("skipped: 1 malformed JSON (b.json:3); mend the JSON")


@pytest.mark.parametrize("depth", [300, 990, 3000])
def test_nested_json_is_read_or_counted(tmp_path, depth):
    fill(tmp_path, {"a.json": "[" * depth + "1" + "]" * depth, "b.txt": "text"})
    corpus = Corpus.from_path(tmp_path)
    assert len(corpus) == 2 or corpus.skipped == {"malformed JSON": ["a.json:1"]}


def test_lone_surrogates_are_replaced_and_counted(tmp_path):
    lists = {"a.json": r'["\ud800 and \udfff", "\ud83d\ude00"]', "b.jsonl": r'{"id": "\ud800", "text": "\udc00"}'}
    corpus = Corpus.from_path(fill(tmp_path, lists))
    assert texts(corpus) == {"a.json:1": "\ufffd and \ufffd", "a.json:2": "😀", "b.jsonl:\ufffd": "\ufffd"}
    assert corpus.replaced == {"a.json:1": 2, "b.jsonl:\ufffd": 1}
    assert corpus.summary().endswith("replaced: 3 broken characters")
    assert len(corpus.digest) == 64
    assert Corpus.from_texts({"\ud800": "\udcff!"}).documents == [Document("\ufffd", "\ufffd!")]


def test_names_that_are_no_text(tmp_path):
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")).write_text("coffee")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert texts(corpus := Corpus.from_path(tmp_path)) == {"caf\ufffd.txt": "coffee"}
    assert len(corpus.digest) == 64


def test_links_are_followed_once(tmp_path):
    fill(tmp_path, {"docs/z/a.md": "A", "docs/b.md": "B", "elsewhere/deep/c.md": "C", "lone.md": "L"})
    docs = tmp_path / "docs"
    (docs / "0-same-folder").symlink_to("z")
    (docs / "0-same-file.md").symlink_to("b.md")
    (docs / "broken.md").symlink_to("nothing")
    (docs / "loop").symlink_to("loop")
    (docs / "z" / "up").symlink_to("..")
    (docs / "z" / "way-up").symlink_to(tmp_path)
    (docs / "outside").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(docs)
    (docs / "lone.txt").symlink_to(tmp_path / "lone.md")
    corpus = Corpus.from_path(docs)
    assert texts(corpus) == {"b.md": "B", "lone.txt": "L", "outside/deep/c.md": "C", "z/a.md": "A"}
    assert {reason: sorted(paths) for reason, paths in corpus.skipped.items()} == {
        "already read": ["0-same-file.md", "0-same-folder", "outside/back"],
        "broken link": ["broken.md"],
        "link in a circle": ["loop", "z/up", "z/way-up"],
    }
    assert refused(docs / "broken.md").endswith("it is a broken link to 'nothing'")
    assert refused(docs / "loop").endswith("it cannot be opened: Too many levels of symbolic links")


def test_a_linked_root_keeps_its_name_and_a_linked_file_its_kind(tmp_path):
    fill(tmp_path, {"blobs/1f00": '{"text": "one"}\n', "blobs/2": "two", "x/y.md": "y"})
    (tmp_path / "docs").symlink_to("blobs")
    (tmp_path / "x" / "data.jsonl").symlink_to(tmp_path / "blobs" / "1f00")
    assert list(texts(Corpus.from_path(tmp_path / "docs", tmp_path / "x" / "y.md"))) == ["docs/1f00", "docs/2", "y.md"]
    assert texts(Corpus.from_path(tmp_path / "x")) == {"data.jsonl:1": "one", "y.md": "y"}


def test_files_that_may_not_be_read(tmp_path, monkeypatch):
    fill(tmp_path, {"docs/a.md": "a", "docs/locked.md": "x", "docs/torn.md": "x", "docs/closed/b.md": "b"})
    read, listed = Path.read_bytes, Path.iterdir

    def read_bytes(path: Path) -> bytes:
        if path.name == "locked.md":
            raise PermissionError(13, "Permission denied")
        if path.name == "torn.md":
            raise OSError(5, "Input/output error")
        return read(path)

    def iterdir(path: Path):
        if path.name == "closed":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    monkeypatch.setattr(Path, "iterdir", iterdir)
    corpus = Corpus.from_path(tmp_path / "docs")
    assert list(texts(corpus)) == ["a.md"]
    assert corpus.skipped == {"no permission": ["closed", "locked.md"], "unreadable": ["torn.md"]}
    assert refused(tmp_path / "docs" / "locked.md").endswith(
        "locked.md: no text left to read, skipped: 1 no permission (locked.md); make them readable"
    )


def test_what_is_no_regular_file_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    fill(tmp_path, {"a.md": "a"})
    assert Corpus.from_path(tmp_path).skipped == {"no regular file": ["pipe"]}


def test_texts_given():
    corpus = Corpus.from_texts({"b": "two", "a": "one", "c": " "})
    assert texts(corpus) == {"b": "two", "a": "one"}
    assert repr(corpus) == "Corpus(2 documents, 6 characters; skipped: 1 empty)"
    assert Corpus.from_texts({"a": "x" * 1234567}).summary() == "1 document, 1,234,567 characters"
    with pytest.raises(InputError, match="the texts given: no file in it, expected text"):
        Corpus.from_texts({})
    with pytest.raises(InputError, match=r"the texts given: no text left to read, skipped: 1 empty \(a\)"):
        Corpus.from_texts({"a": ""})
    with pytest.raises(InputError, match="given str 'a' with bytes, expected a name and a text, both str"):
        Corpus.from_texts({"a": b"x"})


def test_documents_are_found_by_name():
    with pytest.raises(InputError, match=r"unknown document 'guide\.mb'; did you mean 'guide\.md'\?"):
        Corpus.from_texts({"guide.md": "x", "other": "y"}).document("guide.mb")
    with pytest.raises(InputError, match="given two documents named 'a', expected names that differ; rename one"):
        Corpus([Document("a", "1"), Document("a", "2")])
