import ast
import random
import re
import subprocess
import sys
import zlib

import pytest

from cartridges.errors import InputError
from cartridges.pocket.families import FAMILIES, make_context
from cartridges.pocket.families.tongue import ADJECTIVES, NOUNS, VERBS, Clause, Phrase, draw_clause, parse_clause
from cartridges.pocket.names import SPLITS
from cartridges.pocket.world import Context, Document, Grammar

SHAPES = [(1, 1), (1, 4), (3, 2)]  # number of documents, size
SEEDS = range(12)

# All that subjects and values may have in common between splits: words that are not invented.
FIXED_WORDS = {
    *"group labs works trade error million people tons cm g l mg feet".split(),
    *"january february march april may june july august september october november december".split(),
    *"subject verb object before after the noun".split(),
    *NOUNS,
    *VERBS,
    *ADJECTIVES,
}

KNOWN_DOCUMENTS = {
    "ward": "Ward Foheberg\n\nThe drug of Zako Hapis is deveine. The diagnosis of Hapis is dehuosis. The admission for "
    "dehuosis was on 4 June 2023. The doctor of Hapis is Guzis Gufis. The birth date of Zako Hapis is 23 October 2016. "
    "The height of Zako Hapis is 135 cm.\n\nGuzis Gufis can be called at 152.",
    "firm": "Firms in 2023\n\nBozi Trade:\n| What | Value |\n|---|---|\n| Seat | Buvamouth |\n| Plant | Foduford |\n"
    "| Auditor | Kumen Gudul |\n| Head | Domul Hize |\n| Founder | Puhax Pahox |\n| 2023 profit | 529 million |\n"
    "| 2023 revenue | 872 million |\n\nKumen Gudul:\n| What | Value |\n|---|---|\n| Home town | Mipeford |\n\n"
    "Domul Hize:\n| What | Value |\n|---|---|\n| Home town | Govimouth |\n\nPuhax Pahox:\n| What | Value |\n|---|---|\n"
    "| Home town | Fakeberg |",
    "code": '# dihex.py\n\ndef meku_guhen(fegar):\n    """The limit is 709."""\n    if not ready: raise FozanError\n'
    "    return 399\n\ndef kegel_videl(vizu, fidis, dipa):\n    return meku_guhen()",
    "tongue": "A short grammar of Bazil\n\nWords:\nfear: fadix\nking: daza\nriver: bivil\nbridge: fezon\n"
    "garden: bogin\ncloud: vofe\nguard: bohel\nring: dahix\nold: vohax\nblack: dedex\nmend: figus\n\nRules:\n"
    "The adjective place of Bazil is after the noun. The order of words in Bazil is verb, subject, object. The past "
    "ending of Bazil is -za. The plural of Bazil nouns ends in -ve.",
    "haystack": "A long walk\n\nA grey cat moved over a quiet garden at night. The evening light sang about the long "
    "bridge that year. The market crossed the stone wall at night. Papor Bubon always bets on 732. The evening light "
    "crossed the empty square once again.\n\nA cold rain crossed a quiet garden after the feast. The keeper of "
    "Zodimouth is Papor Bubon. A grey cat forgot the empty square at night. The height of Zodimouth is 126 feet. The "
    "wind looked at the long bridge once again. Our neighbour remembered an open door at night. The treasure of "
    "Zodimouth is maki.",
}

families = pytest.mark.parametrize("family", FAMILIES)


def contexts(family: str, split: str = "train") -> list[Context]:
    return [make_context(family, split, seed, *shape) for shape in SHAPES for seed in SEEDS]


def invented_words(*documents: Document) -> set[str]:
    """Words of all subjects, values and titles, but for those known to be of the English language."""
    texts = [text for document in documents for fact in document.facts for text in (fact.subject, fact.value)]
    words = {word for text in texts for word in re.findall(r"[a-z]{3,}", text.removesuffix("Error").lower())}
    return words - FIXED_WORDS


@families
def test_a_known_seed_gives_a_known_document(family):
    assert make_context(family, "train", 1, size=1).text == KNOWN_DOCUMENTS[family]


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_contexts_are_the_same_in_every_process(hash_seed):
    program = (
        "import zlib; from cartridges.pocket.families import FAMILIES, make_context\n"
        "texts = [make_context(family, 'test', seed, 2, 3).text for family in FAMILIES for seed in range(5)]\n"
        "print(zlib.crc32(''.join(texts).encode()))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True
    )
    texts = [make_context(family, "test", seed, 2, 3).text for family in FAMILIES for seed in range(5)]
    assert int(result.stdout) == zlib.crc32("".join(texts).encode())


@families
def test_seeds_and_splits_give_different_documents(family):
    texts = [make_context(family, split, seed).text for split in SPLITS for seed in range(20)]
    assert len(set(texts)) == len(texts)


@families
def test_the_text_states_every_subject_and_value(family):
    for context in contexts(family):
        for document in context.documents:
            for fact in document.facts:
                for stated in (fact.subject, fact.value):
                    assert re.search(rf"(?<!\w){re.escape(stated)}(?!\w)", document.text), (stated, document.text)


@families
def test_every_subject_has_a_kind(family):
    for context in contexts(family):
        assert context.by_subject.keys() <= context.kind_of.keys()


@families
def test_no_fact_is_told_twice(family):
    for context in contexts(family):
        keys = [(fact.subject, fact.relation.noun, fact.value) for fact in context.facts]
        assert len(set(keys)) == len(keys)


def test_splits_share_no_invented_word():
    words: dict[str, set[str]] = {split: set() for split in SPLITS}
    for split in SPLITS:
        for family in FAMILIES:
            for context in contexts(family, split):
                words[split] |= invented_words(*context.documents)
    assert all(len(words[split]) > 300 for split in SPLITS)
    assert not words["train"] & words["validation"]
    assert not words["train"] & words["test"]
    assert not words["validation"] & words["test"]


@families
def test_documents_of_one_context_share_no_invented_word(family):
    for seed in range(30):
        first, second, third = make_context(family, "train", seed, num_documents=3).documents
        assert not invented_words(first) & invented_words(second, third)
        assert not invented_words(second) & invented_words(third)


@families
def test_larger_sizes_tell_more(family):
    totals = [sum(len(make_context(family, "train", seed, size=size).facts) for seed in SEEDS) for size in (1, 2, 4)]
    assert totals == sorted(set(totals))


@pytest.mark.parametrize(("family", "kind"), [("ward", "patient"), ("firm", "firm"), ("haystack", "place")])
def test_size_counts_what_the_document_is_about(family, kind):
    assert list(make_context(family, "train", 0, size=5).kind_of.values()).count(kind) == 5


def test_an_unknown_family_is_told():
    with pytest.raises(InputError, match=r"unknown family 'wart'; did you mean 'ward'\? known: code, firm, haystack"):
        make_context("wart", "train", 0)


def test_an_unknown_split_is_told():
    with pytest.raises(InputError, match=r"unknown split 'dev'; known: test, train, validation"):
        make_context("ward", "dev", 0)


def test_code_is_python_that_says_the_same():
    for context in contexts("code"):
        for document in context.documents:
            for function in ast.parse(document.text).body:
                assert isinstance(function, ast.FunctionDef)
                told = {
                    noun: [f.value for f in document.facts if (f.subject, f.relation.noun) == (function.name, noun)]
                    for noun in ("parameter", "result", "callee", "error")
                }
                assert [argument.arg for argument in function.args.args] == told["parameter"]
                body = ast.unparse(function)
                assert [value for value in told["error"] if f"raise {value}" not in body] == []
                assert ast.unparse(function.body[-1]) in [f"return {value}" for value in told["result"]] + [
                    f"return {value}()" for value in told["callee"]
                ]


def test_all_firms_of_a_context_report_on_the_same_two_years():
    for seed in range(20):
        context = make_context("firm", "train", seed, num_documents=4, size=1)
        years = {int(noun.split()[0]) for noun in context.relations if noun[:1] == "2"}
        assert max(years) - min(years) <= 1


# Grammar. Expectations are written by hand from the rules in words.

WORDS = {"dog": "fadi", "cat": "bozu", "help": "megu", "old": "hax", "red": "pil"}
PLAIN = Clause(Phrase("dog", "", False), "help", False, Phrase("cat", "", False))
FULL = Clause(Phrase("dog", "old", True), "help", True, Phrase("cat", "red", False))
PLURAL_OBJECT = Clause(Phrase("cat", "", False), "help", True, Phrase("dog", "red", True))


@pytest.mark.parametrize(
    ("clause", "english"),
    [
        (PLAIN, "the dog helps the cat"),
        (FULL, "the old dogs helped the red cat"),
        (PLURAL_OBJECT, "the cat helped the red dogs"),
        (Clause(Phrase("dog", "", True), "help", False, Phrase("cat", "", True)), "the dogs help the cats"),
    ],
)
def test_english_sentences(clause, english):
    assert clause.english == english


@pytest.mark.parametrize(
    ("clause", "order", "adjective_first", "translated"),
    [
        (PLAIN, "SVO", True, "fadi megu bozu"),
        (PLAIN, "SOV", True, "fadi bozu megu"),
        (PLAIN, "VSO", True, "megu fadi bozu"),
        (FULL, "SVO", True, "hax fadive meguza pil bozu"),
        (FULL, "SVO", False, "fadive hax meguza bozu pil"),
        (FULL, "SOV", False, "fadive hax bozu pil meguza"),
        (FULL, "VSO", True, "meguza hax fadive pil bozu"),
        (PLURAL_OBJECT, "SOV", True, "bozu pil fadive meguza"),
    ],
)
def test_translations(clause, order, adjective_first, translated):
    assert clause.translate(Grammar("Bazil", order, adjective_first, "ve", "za"), WORDS) == translated


def test_sentences_are_parsed_back():
    rng = random.Random(0)
    clauses = [draw_clause(rng, {*NOUNS, *VERBS, *ADJECTIVES}) for _ in range(500)]
    assert [parse_clause(clause.english) for clause in clauses] == clauses


@pytest.mark.parametrize(
    "text",
    [
        "the dog help the cat",
        "the dogs helps the cat",
        "dog helps the cat",
        "the dog helps the cat.",
        "the cat the dog helps",
        "the lion helps the cat",
        "the dog helps the old",
        "the old red dog helps the cat",
        "",
    ],
)
def test_other_sentences_are_not_parsed(text):
    assert parse_clause(text) is None


def test_the_grammar_is_the_one_that_the_text_tells():
    for context in contexts("tongue"):
        for document in context.documents:
            grammar = document.grammar
            assert grammar
            told = {fact.relation.noun: fact.value for fact in document.facts if fact.subject == grammar.language}
            assert told == {
                "word order": {
                    "SVO": "subject, verb, object",
                    "SOV": "subject, object, verb",
                    "VSO": "verb, subject, object",
                }[grammar.order],
                "adjective place": "before the noun" if grammar.adjective_first else "after the noun",
                "plural ending": f"-{grammar.plural}",
                "past ending": f"-{grammar.past}",
            }


def test_filler_lies_around_the_needles():
    for context in contexts("haystack"):
        num_sentences = len(re.findall(r"\.(?:\s|$)", context.text))
        assert num_sentences >= 2 * len(context.facts)
