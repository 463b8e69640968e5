"""LongHealth: 20 fictional patients of 5,090 to 6,754 words, 20 multiple-choice questions each (arXiv 2401.14490).

Data: `benchmark_v5.json` of github.com/kbressem/LongHealth, Apache-2.0; give the file, or a copy on the hub as
hf://datasets/OWNER/NAME/FILE. Metric: accuracy of the letter that a reply settles on, of five. Published: arXiv
2506.06266, Llama-3.2-3B, 10 patients, 0.96 GB: 55.3-55.6.
"""

from pathlib import Path
from typing import Any

from cartridges.corpus import Corpus
from cartridges.errors import FormatError, InputError
from cartridges.evals.files import field, local_file, read_json
from cartridges.evals.task import Task
from cartridges.questions import Item

LETTERS = "ABCDE"
PROMPT = """\
You are asked about the patient {name}, born {birthday}, with the diagnosis {diagnosis}.

{question}

{options}

Answer with the letter of the one right option, in the form "Answer: X".\
"""
PUBLISHED = "arXiv 2506.06266: Llama-3.2-3B, 10 patients, 55.3-55.6 at 0.96 GB"


def longhealth_task(path: str | Path, num_patients: int = 10, max_new_tokens: int = 512) -> Task:
    """The first patients, by number, with all their texts. Raises InputError, FormatError."""
    file = local_file(path, "LongHealth's benchmark_v5.json")
    patients = read_json(file)
    if not isinstance(patients, dict) or not patients:
        raise FormatError(f"{file}: expected an object with a patient under each key; is this benchmark_v5.json?")
    if not 0 < num_patients <= len(patients):
        raise InputError(f"given num_patients={num_patients}, expected 1 to {len(patients)}, as there are in {file}")
    texts: dict[str, str] = {}
    items: list[Item] = []
    for key in sorted(patients)[:num_patients]:
        patient, where = patients[key], f"{file}, {key}"
        about = {name: field(patient, name, str, where) for name in ("name", "birthday", "diagnosis")}
        notes = field(patient, "texts", dict, where)
        head = f"Patient {about['name']}, born {about['birthday']}, diagnosis {about['diagnosis']}"
        texts[key] = "\n\n".join([head, *(f"[{name}]\n{text}" for name, text in notes.items())])
        for row in field(patient, "questions", list, where):
            items.append(item_of(row, about, key, f"{where}, question {len(items) + 1}"))
    corpus = Corpus.from_texts(texts)
    return Task(f"longhealth-{num_patients}", corpus, tuple(items), "accuracy", max_new_tokens, PUBLISHED)


def item_of(row: Any, about: dict[str, str], document: str, where: str) -> Item:
    """A question with its options; the right one is told by its text."""
    options = [field(row, f"answer_{letter.lower()}", str, where) for letter in LETTERS]
    correct = field(row, "correct", str, where)
    right = [letter for letter, option in zip(LETTERS, options, strict=True) if option.strip() == correct.strip()]
    if len(right) != 1:
        raise FormatError(f"{where}: {len(right)} options are the correct one ({correct[:60]!r}), expected one")
    listed = "\n".join(f"{letter}) {option}" for letter, option in zip(LETTERS, options, strict=True))
    asked = PROMPT.format(**about, question=field(row, "question", str, where), options=listed)
    return Item(asked, f"Answer: {right[0]}", (right[0],), "letter", document, "choice")
