"""The card and the page say the same, stand alone, and cannot be made to run what stands in a document."""

import dataclasses
import json
import math
import re
import struct
import subprocess
import sys
from html.parser import HTMLParser

import pytest
import yaml
from markdown_it import MarkdownIt

from cartridges.errors import InputError
from cartridges.report import Ledger, write_report
from cartridges.report_page import Example, Table, block_html, markdown
from cartridges.results import Reply
from tests.report_samples import LEDGER, a_manifest, changed, some_results

EVIL = "<script>alert('x')</script>"


def report_of(folder, results, manifests=None, ledger=LEDGER, coverage=None, study=None, paths=()):
    """README, page and the names of pictures."""
    page = write_report(folder, results, manifests or [a_manifest()], ledger, coverage or {}, study or {}, paths)
    assert page == folder / "report.html"
    pictures = {path.name for path in folder.glob("*.png")}
    return (folder / "README.md").read_text(), page.read_text(), pictures


class Page(HTMLParser):
    """Tags with their attributes, what was not closed, and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.said = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "source", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.said.append(data)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    @property
    def text(self):
        return " ".join(self.said)


def png_size(path):
    raw = path.read_bytes()
    assert raw[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", raw[16:24])


def test_nothing_from_a_document_becomes_markup(tmp_path):
    results = some_results(notes=[f"{EVIL}.md was skipped", "- # not a title", "![x](javascript:alert)"])
    first = results.replies[0]
    replies = dict.fromkeys(first.replies, f"{EVIL} | a\nb ![i](http://x/y.png) $a$ `c` <b>\u202eevil\x07")
    results.replies = [dataclasses.replace(first, question=EVIL, answer=EVIL, kind=EVIL, replies=replies)]
    results.about = {"documents": [f"{EVIL}.md", "plain.md"], "questions": "given"}
    results = changed(results, "cartridge-64", label=EVIL)
    study = {"corpus": EVIL, "dropped": {EVIL: 3}, "num_by_kind": {EVIL: 2}}
    coverage = {"character_ratio": 0.5, "missed_examples": [EVIL], EVIL: 1}
    manifests = [a_manifest(name=EVIL, model_id=f"/home/{EVIL}")]
    card, html, _ = report_of(tmp_path, results, manifests, Ledger([(EVIL, 1, 1, 1.0)]), coverage, study)
    assert "<script" not in card + html
    page = Page(html)
    assert page.open == []
    assert page.text.count(EVIL) > 10
    assert not any(tag in ("script", "b", "a", "iframe", "link") for tag, _ in page.tags)
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    for _, attributes in page.tags:
        for key in ("src", "srcset"):
            assert attributes.get(key, "data:image/png;base64,").startswith("data:image/png;base64,")
    body = card.split("---\n", 2)[2]
    seen = Page(MarkdownIt("commonmark").enable("table").render(body))  # which lets raw HTML through
    assert {dict(attributes)["src"] for tag, attributes in seen.tags if tag == "img"} == {"accuracy.png"}
    assert not any(tag in ("script", "b", "a") for tag, _ in seen.tags)
    assert [tag for tag, _ in seen.tags].count("h1") == 1
    assert seen.text.count(EVIL) > 10
    assert "\u202e" not in card + html and "\x07" not in card + html


def test_the_page_is_one_file_for_light_dark_and_narrow_screens(tmp_path):
    _, html, _ = report_of(tmp_path, some_results())
    page = Page(html)
    assert "prefers-color-scheme: dark" in html and 'name="viewport"' in html
    assert "default-src 'none'" in next(a["content"] for t, a in page.tags if "http-equiv" in a)
    assert not re.search(r"https?://|@import|url\(", html)
    assert sum(tag == "source" for tag, _ in page.tags) == sum(tag == "img" for tag, _ in page.tags) == 1


def test_the_card_and_the_page_say_the_same(tmp_path):
    results = some_results(about={"num_documents": 3, "num_tokens": 2000, "window": 4096, "num_cut": 1, "digest": "ab"})
    coverage = {"character_ratio": 0.9875, "salient_ratio": 1, "num_salient_spans": 812}
    study = {"num_conversations": 1024, "num_kept": 1000, "num_openings": 640, "dropped": {"cut_off": 24}}
    study["num_by_kind"] = {"use_case": 1000}
    card, html, _ = report_of(tmp_path, results, coverage=coverage, study=study)
    seen = [Page(MarkdownIt("commonmark").enable("table").render(card.split("---\n", 2)[2])).text, Page(html).text]
    for text in seen:
        text = " ".join(text.split())
        for part in (
            "ward: report card",
            "The 64-slot cartridge gives 94% of the accuracy of reading everything",
            "3 documents; 2,000 tokens",
            "One reply was cut off at the limit",
            "98.8%",
            "1,000 kept of 1,024, with 640 different first messages",
            "24 cut off",
            "1,000 use case",
            "synthesize 5,000 700 60.0 48.0%",
            "in all 8,000 700 125",
            "pays after 201 queries",
            "no prefix cache",
            "38 of 40 replies are the same",
            "wrong",
        ):
            assert part in text, part
        assert text.index("q34?") < text.index("q35?") < text.index("q0?")


def test_front_matter_for_the_hub(tmp_path):
    def matter(*ids):
        card, _, _ = report_of(tmp_path, some_results(), [a_manifest(model_id=name) for name in ids])
        assert card.startswith("---\n")
        return yaml.safe_load(card.split("---\n")[1])

    assert matter("Qwen/Qwen3-0.6B") == {"tags": ["cartridge"], "base_model": "Qwen/Qwen3-0.6B"}
    assert matter("a/b", "a/c")["base_model"] == ["a/b", "a/c"]
    for local in ("/home/me/model", "pocket", "../x", "a/b/c", "x: y"):
        assert matter(local) == {"tags": ["cartridge"]}


def metrics_file(folder, name, rows):
    path = folder / name / "metrics.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_pictures_come_and_go_with_the_numbers(tmp_path):
    runs = [metrics_file(tmp_path, f"slots-{n}", [{"step": i, "loss": 2 / i} for i in range(1, 9)]) for n in (64, 128)]
    several = some_results({"full_context": 36, "no_context": 4, "cartridge-64": 20, "cartridge-128": 33})
    card, html, pictures = report_of(tmp_path / "out", several, paths=runs)
    assert pictures == {"accuracy.png", "sizes.png", "training.png"}
    assert re.findall(r"\]\((\w+\.png)\)", card) == ["accuracy.png", "sizes.png", "training.png"]
    assert html.count("<img") == 3
    assert all(png_size(tmp_path / "out" / name)[0] > 800 for name in pictures)
    card, html, pictures = report_of(tmp_path / "out", some_results())  # one size, no metrics
    assert pictures == {"accuracy.png"}
    assert "sizes.png" not in card and html.count("<img") == 1
    nothing = {"accuracy": None, "ci95": None, "top1_agreement": None, "kl_per_token": None}
    blank = some_results()
    blank.methods = [dataclasses.replace(row, **nothing) for row in blank.methods]
    assert report_of(tmp_path / "out", blank)[2] == set()


def test_the_same_input_gives_the_same_files(tmp_path):
    rights = {"full_context": 36, "no_context": 4, "cartridge-64": 20, "cartridge-128": 33}
    runs = [metrics_file(tmp_path, "slots-64", [{"step": i, "loss": 1.5, "heldout_loss": 1.0} for i in range(5)])]
    for name in ("one", "two"):
        report_of(tmp_path / name, some_results(rights), paths=runs)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["README.md", "accuracy.png", "report.html", "sizes.png", "training.png"]
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in files)


def test_many_sizes_long_and_odd_labels_and_holes_are_drawn(tmp_path):
    sizes = [32 * 2**i for i in range(9)] + [33, 35]
    rights = {"full_context": 36, "no_context": 4, **{f"cartridge-{size}": 5 + i for i, size in enumerate(sizes)}}
    results = some_results(rights, with_replies=False)
    results = changed(results, "cartridge-64", label="$x^{ " + "a" * 90)
    results = changed(results, "cartridge-128", label="文書 " * 30, ci95=None)
    results = changed(results, "cartridge-256", label="", accuracy=math.nan)
    results = changed(results, "full_context", kv_bytes=0)
    path = metrics_file(tmp_path, "$" + "long-" * 20, [{"step": 1, "loss": 0.0}, {"step": 2, "loss": 1.0, "lr": 1}])
    _, _, pictures = report_of(tmp_path / "out", results, paths=[path])
    assert pictures == {"accuracy.png", "sizes.png", "training.png"}
    few = some_results({"full_context": 36, "no_context": 4, "cartridge-64": 5}, with_replies=False)
    report_of(tmp_path / "few", few)
    widths = {png_size(tmp_path / folder / "accuracy.png")[0] for folder in ("out", "few")}
    heights = [png_size(tmp_path / folder / "accuracy.png")[1] for folder in ("out", "few")]
    assert len(widths) == 1 and heights[0] > 2 * heights[1]


def test_without_accuracy_agreement_is_drawn_and_nothing_is_marked(tmp_path):
    results = some_results(
        {"full_context": None, "no_context": None, "cartridge-64": None, "cartridge-128": None}, num=0
    )
    results.methods = [dataclasses.replace(row, num_questions=50) for row in results.methods]
    results.replies = [Reply("why?", "because", "use_case", {row.method: row.method for row in results.methods})]
    results.about["questions"] = "held-out conversations"
    card, _, pictures = report_of(tmp_path, results)
    assert pictures == {"accuracy.png", "sizes.png"}
    assert "the model itself wrote them" in card
    assert "(right)" not in card and "(wrong)" not in card and "expected" not in card
    assert "why?" in card


@pytest.mark.parametrize(
    ("questions", "training", "is_told"),
    [
        ("held-out conversations", {"keep_best": True}, True),
        ("held-out conversations", {"keep_best": False}, False),
        ("held-out conversations", {}, False),
        ("given", {"keep_best": True}, False),
    ],
)
def test_conversations_that_chose_the_kept_step_are_told(tmp_path, questions, training, is_told):
    manifest = a_manifest().model_copy(update={"training": training})
    card, html, _ = report_of(tmp_path, some_results(about={"questions": questions}), [manifest])
    for text in (card, html):
        assert ("The kept step of training was chosen by its loss on these very conversations" in text) == is_told


def test_wrong_input_is_told(tmp_path):
    with pytest.raises(InputError, match="given no manifest, expected one for every cartridge"):
        write_report(tmp_path, some_results(), [], LEDGER, {}, {})
    with pytest.raises(InputError, match=r"given the metrics file '.*nowhere.jsonl', expected a JSONL file"):
        report_of(tmp_path, some_results(), paths=[tmp_path / "nowhere.jsonl"])
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="mend that and give the same command again"):
        report_of(tmp_path / "file", some_results())


def test_an_almost_empty_report_admits_it(tmp_path):
    results = some_results({"full_context": 3, "cartridge-64": 2}, num=3, with_replies=False)
    card, _, _ = report_of(tmp_path, results, ledger=Ledger())
    for part in ("Not recorded.", "What the steps cost was not recorded.", "Not measured: nothing is known of"):
        assert part in card


def test_long_replies_are_cut_with_a_count():
    long = Example("q", "", [("method", "x" * 1000, "")])
    assert "… (200 more characters)" in block_html(long, {})
    assert "… (200 more characters)" in markdown("t", [long])


def test_empty_cells_keep_the_table_whole():
    text = markdown("t", [Table(("a", "b"), [["", "1|2"], ["x\ny", ""]], strong=frozenset({0}))])
    rendered = Page(MarkdownIt("commonmark").enable("table").render(text))
    assert [tag for tag, _ in rendered.tags].count("td") == 4
    assert "1|2" in rendered.text and "x y" in rendered.text


def test_importing_the_report_imports_no_torch_and_no_matplotlib():
    heavy = "{'torch', 'transformers', 'matplotlib'}"
    program = f"import sys, cartridges.report; sys.exit(' '.join({heavy} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
