"""The report card of a build: what a cartridge stands for, how faithful it is, what it cost and when it pays.

`README.md` (which the Hugging Face Hub reads) and `report.html` say the same, with the pictures `accuracy.png`,
`sizes.png` (where several sizes were built) and `training.png`. Every number is one that was measured; nothing here
measures, and the same input gives the same files.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cartridges.cartridge import Manifest
from cartridges.errors import InputError
from cartridges.ledger import Ledger, break_even
from cartridges.report_figures import pictures
from cartridges.report_page import (
    Block,
    Bullets,
    Drawn,
    Example,
    Heading,
    Paragraph,
    Picture,
    Table,
    Verdict,
    html_page,
    markdown,
)
from cartridges.report_table import (
    DASH,
    console_table,
    counted,
    duration,
    fidelity_table,
    human_bytes,
    is_number,
    labels,
    off_corpus_table,
    percent,
    results_table,
    seconds_text,
)
from cartridges.results import Reply, Results
from cartridges.run_folder import disk_errors_told, write_whole
from cartridges.verdict import best, pays_text, verdict

__all__ = ["Ledger", "break_even", "console_table", "results_table", "write_report"]

CARD, PAGE = "README.md", "report.html"
PICTURES = {
    "accuracy.png": "accuracy of every method",
    "sizes.png": "accuracy against KV bytes",
    "training.png": "loss while training",
}
BUNDLED = "pocket"  # a model that is on no hub
NUM_EXAMPLES, NUM_DOCUMENTS, DIGEST_LEN = 3, 12, 12
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_COVERAGE = {
    "character_ratio": "characters of the corpus that lie in some studied chunk",
    "salient_ratio": "salient spans (numbers, names, rare words) that occur in some conversation",
    "num_salient_spans": "salient spans in the corpus",
    "missed_examples": "some that occur in none",
}
ASSUMPTION = (
    "This takes every query to come alone and to read the corpus anew: no prefix cache and no batch. A server that "
    "keeps the KV cache of the whole corpus between queries saves that reading, too; against it a cartridge saves "
    "memory, and it may never pay in seconds. Measuring is not counted, as nobody needs it to use a cartridge."
)


def write_report(
    folder: Path,
    results: Results,
    manifests: Sequence[Manifest],
    ledger: Ledger,
    coverage: Mapping[str, Any],
    study: Mapping[str, Any],
    metrics_paths: Sequence[Path] = (),
) -> Path:
    """Write README.md, report.html and the pictures into `folder`; gives the path of the HTML page.

    `coverage` are fractions (names that end with _ratio) and counts (that begin with num_), `study` the manifest of the
    synthesis, `metrics_paths` the metrics.jsonl of the training runs. Pictures of an older report are removed. Raises
    InputError without a manifest or the reference's row, or where a file of metrics is missing.
    """
    if not manifests:
        raise InputError("given no manifest, expected one for every cartridge that the report is of")
    folder = Path(folder)
    found = pictures(results, metrics_paths)
    title = f"{manifests[0].name or 'A cartridge'}: report card"
    blocks = sections(results, manifests, ledger, coverage, study, found)
    with disk_errors_told(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name in PICTURES:
            if name in found:
                write_whole(folder / name, found[name].light)
            else:
                (folder / name).unlink(missing_ok=True)
        card = front_matter(manifests) + "\n" + markdown(title, blocks)
        write_whole(folder / CARD, card.encode())
        write_whole(folder / PAGE, html_page(title, blocks, found).encode())
    return folder / PAGE


def front_matter(manifests: Sequence[Manifest]) -> str:
    """What the Hub reads of a card. A model in a local folder is no model of the Hub, and is left out."""
    ids = sorted({manifest.model.model_id for manifest in manifests})
    known = [name for name in ids if _HUB_ID.fullmatch(name) and ".." not in name and name != BUNDLED]
    about: dict[str, Any] = {"tags": ["cartridge"]}
    if known:
        about["base_model"] = known[0] if len(known) == 1 else known
    return f"---\n{yaml.safe_dump(about, sort_keys=False, allow_unicode=True)}---\n"


def sections(
    results: Results,
    manifests: Sequence[Manifest],
    ledger: Ledger,
    coverage: Mapping[str, Any],
    study: Mapping[str, Any],
    found: Mapping[str, Drawn],
) -> list[Block]:
    """All of the report, in its order."""
    headline, items = verdict(results, ledger)

    def picture(name: str) -> list[Block]:
        return [Picture(name, PICTURES[name])] if name in found else []

    return [
        Verdict(headline, items),
        *picture("accuracy.png"),
        Heading("What it stands for"),
        *stands_for(results, manifests, study),
        Heading("Fidelity"),
        *asked(results, manifests),
        fidelity_table(results),
        *picture("sizes.png"),
        *examples(results),
        *off_corpus(results),
        Heading("Coverage"),
        *covered(coverage, study),
        Heading("Cost"),
        *cost(results, ledger),
        *picture("training.png"),
        *remarks(results),
    ]


def stands_for(results: Results, manifests: Sequence[Manifest], study: Mapping[str, Any]) -> list[Block]:
    """The corpus, the model, and each cartridge with where it came from."""
    about, model = results.about, manifests[0].model
    tokens = about.get("num_tokens")
    corpus = [str(study["corpus"])] if isinstance(study.get("corpus"), str) else []
    if not corpus and isinstance(about.get("num_documents"), int):
        corpus.append(counted(about["num_documents"], "document"))
    corpus += [f"{tokens:,} tokens"] if isinstance(tokens, int) else []
    digest = manifests[0].corpus_digest or str(about.get("digest", ""))
    corpus += [f"digest {digest[:DIGEST_LEN]}"] if digest else []
    window = f", window {about['window']:,} tokens" if isinstance(about.get("window"), int) else ""
    revision = f", revision {model.revision}" if model.revision else ""
    items = [
        f"Corpus: {'; '.join(corpus) or 'not told'}.",
        f"Model: {model.model_id} ({model.architecture}{revision}{window}). It fits no other model.",
    ]
    names = about.get("documents")
    if isinstance(names, list) and names:
        more = len(names) - NUM_DOCUMENTS
        told = ", ".join(map(str, names[:NUM_DOCUMENTS])) + (f" and {more:,} more" if more > 0 else "")
        items.append(f"Documents: {told}.")
    columns = ("cartridge", "slots (frozen)", "KV bytes", "began as", "trained by", "steps (kept)", "held-out loss")
    return [Bullets(items), Table((*columns, "made", "digest"), list(map(origin, manifests)), is_text=True)]


def origin(manifest: Manifest) -> list[str]:
    """One cartridge as a row."""
    metrics, training = manifest.metrics, manifest.training
    loss = metrics.get("heldout_loss")
    steps = f"{metrics.get('steps', DASH)} ({metrics.get('kept_step', DASH)})"
    objective = f"{training.get('objective', DASH)}, lr {training.get('lr', DASH)}" if training else DASH
    return [
        manifest.name or "(unnamed)",
        f"{manifest.num_slots:,} ({manifest.num_frozen:,})",
        human_bytes(manifest.model.kv_bytes(manifest.num_slots)),
        str(manifest.initializer.get("kind", DASH)),
        objective,
        steps,
        f"{loss:.4f}" if isinstance(loss, int | float) and is_number(loss) else DASH,
        manifest.created[:10] or DASH,
        manifest.digest[:DIGEST_LEN] or DASH,
    ]


def asked(results: Results, manifests: Sequence[Manifest]) -> list[Block]:
    """Which questions the table rests on, and whether training has looked at them."""
    num = results.row(results.reference).num_questions
    source = results.about.get("questions")
    if isinstance(source, str) and source.startswith("held-out"):
        told = (
            f"{counted(num, 'question')} from held-out conversations: the model itself wrote them, as it wrote those "
            "that were learned, so they are kinder than a user's."
        )
        if any(manifest.training.get("keep_best") for manifest in manifests):
            told += (
                " The kept step of training was chosen by its loss on these very conversations, so they are not "
                "independent of it."
            )
    else:
        told = f"{counted(num, 'question')}, the same for every method."
    cut = results.about.get("num_cut")
    if isinstance(cut, int) and cut:
        told += f" {'One reply was' if cut == 1 else f'{cut:,} replies were'} cut off at the limit of new tokens."
    return [Paragraph(told)]


def examples(results: Results) -> list[Block]:
    """Three questions with the replies of reference and cartridge: first where the replies differ."""
    row = best(results)
    if row is None:
        return []
    both = (results.reference, row.method)
    named = labels(results.methods)
    replies = [reply for reply in results.replies if all(method in reply.replies for method in both)]
    chosen = sorted(replies, key=lambda reply: rank(reply, *both))[:NUM_EXAMPLES]
    if not chosen:
        return []
    num_same = sum(same(reply, *both) for reply in replies)
    intro = (
        f"First those where the two differ, so these are not typical: {num_same:,} of {len(replies):,} replies are the "
        "same to the letter."
    )
    found: list[Block] = [Heading("Replies"), Paragraph(intro)]
    for reply in chosen:
        told = [reply.kind] * bool(reply.kind) + [f"expected: {reply.answer}"] * bool(reply.answer and reply.scores)
        said = [(named[method], reply.replies[method], mark(reply, method)) for method in both]
        found.append(Example(reply.question, "; ".join(told), said))
    return found


def same(reply: Reply, reference: str, method: str) -> bool:
    """Whether two methods said the same."""
    return reply.replies[reference].split() == reply.replies[method].split()


def rank(reply: Reply, reference: str, method: str) -> int:
    """The place of an example: first where the cartridge alone is wrong, then where scores differ, then where texts."""
    lost = reply.scores.get(reference, 0.0) - reply.scores.get(method, 0.0)
    return 0 if lost > 0 else 1 if lost < 0 else 2 if not same(reply, reference, method) else 3


def mark(reply: Reply, method: str) -> str:
    """Whether a reply is right, "" where nothing scores it."""
    score = reply.scores.get(method)
    return "" if score is None else {1.0: "right", 0.0: "wrong"}.get(score, f"score {score:.2f}")


def off_corpus(results: Results) -> list[Block]:
    """The harm done to other questions."""
    table = off_corpus_table(results)
    missing = Paragraph("Not measured: nothing is known of what the cartridge does to other questions.")
    return [Heading("Off the corpus"), table if table else missing]


def covered(coverage: Mapping[str, Any], study: Mapping[str, Any]) -> list[Block]:
    """How much of the corpus was studied, and what became of the conversations."""
    items = []
    for key, value in coverage.items():
        name = _COVERAGE.get(key, key.removeprefix("num_").removesuffix("_ratio").replace("_", " "))
        if isinstance(value, int | float):
            items.append(f"{name}: {percent(value) if key.endswith('_ratio') else number(value)}")
        elif isinstance(value, list) and value:
            items.append(f"{name}: {', '.join(map(str, value))}")
    asked_for, kept = study.get("num_conversations"), study.get("num_kept")
    if isinstance(asked_for, int) and isinstance(kept, int):
        openings = study.get("num_openings")
        repeats = f", with {openings:,} different first messages" if isinstance(openings, int) else ""
        items.append(f"conversations: {kept:,} kept of {asked_for:,}{repeats}")
    for key, title in (
        ("dropped", "conversations dropped"),
        ("noted", "noted, not dropped"),
        ("num_by_kind", "conversations kept, by kind of seed prompt"),
        ("num_tokens", "tokens of the study"),
    ):
        counts = study.get(key)
        if isinstance(counts, Mapping):
            told = ", ".join(f"{number(num)} {str(name).replace('_', ' ')}" for name, num in counts.items())
            items.append(f"{title}: {told or 'none'}")
    told_nothing = Paragraph("Not recorded.")
    caution = Paragraph("That something was asked about does not mean that it was learned: the table above tells that.")
    return [Bullets(items), caution] if items else [told_nothing]


def number(value: object) -> str:
    """A count as "1,024", any other number short."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


def cost(results: Results, ledger: Ledger) -> list[Block]:
    """The ledger, and when each cartridge pays."""
    found: list[Block] = []
    if ledger.entries:
        total = ledger.seconds
        rows = [
            [step, f"{read:,}", f"{written:,}", seconds_text(spent), percent(spent / total if total > 0 else None)]
            for step, read, written, spent in ledger.entries
        ]
        num_read = sum(read for _, read, _, _ in ledger.entries)
        num_written = sum(written for _, _, written, _ in ledger.entries)
        rows.append(["in all", f"{num_read:,}", f"{num_written:,}", seconds_text(total), ""])
        columns = ("step", "tokens read", "tokens written", "seconds", "share")
        machine = results.provenance.get("hardware")
        notes = [f"In all {duration(total)}{f'; measured on {machine}' if machine else ''}."]
        found.append(Table(columns, rows, notes, frozenset({len(rows) - 1})))
    else:
        found.append(Paragraph("What the steps cost was not recorded."))
    pays = [pays_text(results, row, ledger) for row in results.cartridges]
    if any(ledger.build_s(row.num_slots) > 1.01 * row.build_s > 0 for row in results.cartridges):
        pays.append(
            "The ledger counts more than the build seconds of the table above; the ledger is what is paid here."
        )
    return [*found, *([Bullets(pays), Paragraph(ASSUMPTION)] if pays else [])]


def remarks(results: Results) -> list[Block]:
    """What the evaluation noted, and with what it was made."""
    made = results.provenance
    versions = made.get("versions")
    parts = [f"{key} {made[key]}" for key in ("date", "commit", "hardware") if made.get(key)]
    if isinstance(versions, Mapping):
        parts += [f"{name} {version}" for name, version in versions.items()]
    items = [*results.notes, *([f"Measured with: {', '.join(parts)}."] if parts else [])]
    return [Heading("Notes"), Bullets(items)] if items else []
