"""QASPER: questions about papers in natural language processing (arXiv 2105.03011).

Data: `allenai/qasper` on the hub, CC BY 4.0; read are the release's JSON (`qasper-dev-v0.3.json`, by paper id) and
the hub's Parquet (hf://datasets/OWNER/NAME/FILE fetches one). Metric: token F1 (SQuAD's), the best over annotators.
Published: arXiv 2105.03011, humans 60.9 F1, Longformer-encoder-decoder 33.6; 2506.06266 measures perplexity instead.
"""

from pathlib import Path
from typing import Any

from cartridges.corpus import Corpus
from cartridges.errors import FormatError, InputError
from cartridges.evals.files import field, local_file, read_json
from cartridges.evals.task import Task
from cartridges.questions import Item

PROMPT = (
    'About the paper "{title}": {question}\nAnswer in a few words, with "yes" or "no" where that is the answer, or '
    'with "unanswerable" where the paper does not tell.'
)
UNANSWERABLE = "unanswerable"
PUBLISHED = "arXiv 2105.03011: humans 60.9 F1, LED 33.6"


def qasper_task(path: str | Path, num_papers: int = 16, max_new_tokens: int = 64) -> Task:
    """The first papers with all their questions. Raises InputError, FormatError."""
    file = local_file(path, "QASPER's JSON or Parquet")
    papers = from_parquet(file) if file.suffix == ".parquet" else from_json(file)
    if not 0 < num_papers <= len(papers):
        raise InputError(f"given num_papers={num_papers}, expected 1 to {len(papers)}, as there are in {file}")
    texts: dict[str, str] = {}
    items: list[Item] = []
    for key, paper in list(papers.items())[:num_papers]:
        where = f"{file}, paper {key}"
        title = field(paper, "title", str, where)
        texts[key] = text_of(paper, title, where)
        for number, row in enumerate(field(paper, "qas", list, where), start=1):
            golds = golds_of(row, f"{where}, question {number}")
            asked = PROMPT.format(title=title, question=field(row, "question", str, where))
            kind = "unanswerable" if golds == (UNANSWERABLE,) else "question"
            items.append(Item(asked, golds[0], golds, "f1", key, kind))
    corpus = Corpus.from_texts(texts)
    return Task(f"qasper-{num_papers}", corpus, tuple(items), "token F1", max_new_tokens, PUBLISHED)


def text_of(paper: dict[str, Any], title: str, where: str) -> str:
    """Title, abstract and sections as text."""
    parts = [title, field(paper, "abstract", str, where)]
    for section in field(paper, "full_text", list, where):
        paragraphs = field(section, "paragraphs", list, where)
        parts.append("\n".join([f"## {section.get('section_name') or ''}", *map(str, paragraphs)]))
    return "\n\n".join(parts)


def golds_of(row: Any, where: str) -> tuple[str, ...]:
    """What each annotator answered, each once."""
    found: list[str] = []
    for annotation in field(row, "answers", list, where):
        answer = field(annotation, "answer", dict, where)
        if answer.get("unanswerable"):
            found.append(UNANSWERABLE)
        elif answer.get("extractive_spans"):
            found.append(", ".join(map(str, answer["extractive_spans"])))
        elif answer.get("free_form_answer"):
            found.append(str(answer["free_form_answer"]))
        elif answer.get("yes_no") is not None:
            found.append("yes" if answer["yes_no"] else "no")
    if not found:
        raise FormatError(f"{where}: no annotator gave an answer of a known form; is this QASPER's own file?")
    return tuple(dict.fromkeys(found))


def from_json(file: Path) -> dict[str, Any]:
    """Papers by id."""
    papers = read_json(file)
    if not isinstance(papers, dict) or not papers:
        raise FormatError(f"{file}: expected an object with a paper under each id; is this QASPER's own file?")
    return papers


def from_parquet(file: Path) -> dict[str, Any]:
    """Papers by id; the hub stores lists of objects as objects of lists."""
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(file).to_pylist()
    except Exception as error:  # what pyarrow raises for other files has no common base
        raise FormatError(f"{file} cannot be read as Parquet ({type(error).__name__}); fetch it again") from error
    papers = {}
    for number, row in enumerate(rows, start=1):
        where = f"{file}, row {number}"
        qas = turned(field(row, "qas", dict, where))
        for question in qas:
            question["answers"] = turned(field(question, "answers", dict, where))
        full_text = turned(field(row, "full_text", dict, where))
        papers[field(row, "id", str, where)] = {**row, "qas": qas, "full_text": full_text}
    return papers


def turned(columns: dict[str, Any]) -> list[dict[str, Any]]:
    """An object of lists as a list of objects."""
    lists = {key: value for key, value in columns.items() if isinstance(value, list)}
    return [dict(zip(lists, values, strict=False)) for values in zip(*lists.values(), strict=False)]
