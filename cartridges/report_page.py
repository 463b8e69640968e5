"""What a report is made of, and how that looks as Markdown and as one HTML file.

Blocks hold plain text: questions, replies and paths come from users' documents, so whatever a renderer writes it
escapes. The HTML needs nothing from outside: pictures are inlined, and its policy lets a browser load nothing else.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

MAX_SHOWN_CHARS = 800  # of a question or a reply
# Control characters, and those that turn the direction of the text behind them.
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_MARKDOWN = re.compile(r"([\\`*_\[\]|~$]|^[#+=-]|(?<=^\d)[.)](?=\s|$))")


@dataclass(frozen=True)
class Heading:
    """The title of a section."""

    text: str


@dataclass(frozen=True)
class Paragraph:
    """Running text."""

    text: str


@dataclass(frozen=True)
class Verdict:
    """The finding in one sentence, and what else must be said."""

    headline: str
    items: Sequence[str]


@dataclass(frozen=True)
class Bullets:
    """A list."""

    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Rows of text; the first column is left-aligned, the others are numbers unless `is_text`. Notes stand below."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    strong: frozenset[int] = frozenset()  # rows that matter most
    is_text: bool = False


@dataclass(frozen=True)
class Picture:
    """A picture beside the report."""

    name: str
    alt: str


@dataclass(frozen=True)
class Example:
    """A question and what was replied: label, reply and a mark such as "right" ("" for none)."""

    question: str
    about: str
    replies: Sequence[tuple[str, str, str]]


Block = Heading | Paragraph | Verdict | Bullets | Table | Picture | Example


@dataclass(frozen=True)
class Drawn:
    """A picture as PNG, once for light and once for dark pages."""

    light: bytes
    dark: bytes


def shown(text: str) -> str:
    """Text as it may be shown: without control characters, and not endless."""
    text = _UNSEEN.sub("", text.replace("\r\n", "\n")).strip()
    num_more = len(text) - MAX_SHOWN_CHARS
    return text if num_more <= 0 else f"{text[:MAX_SHOWN_CHARS].rstrip()} … ({num_more:,} more characters)"


def md(text: str) -> str:
    """Text in one line of Markdown, without any effect as markup."""
    return _MARKDOWN.sub(r"\\\1", escape(" ".join(shown(text).split()), quote=False))


def markdown(title: str, blocks: Sequence[Block]) -> str:
    """The report as Markdown, without front matter."""
    return "\n\n".join([f"# {md(title)}", *map(block_md, blocks)]) + "\n"


def block_md(block: Block) -> str:
    """One block as Markdown, without the line break at its end."""
    match block:
        case Heading():
            return f"## {md(block.text)}"
        case Paragraph():
            return md(block.text)
        case Verdict():
            items = "\n".join(f"- {md(item)}" for item in block.items)
            return f"**{md(block.headline)}**" + (f"\n\n{items}" if items else "")
        case Bullets():
            return "\n".join(f"- {md(item)}" for item in block.items)
        case Picture():
            return f"![{md(block.alt)}]({block.name})"
        case Example():
            about = f" ({md(block.about)})" if block.about else ""
            lines = [f"- **{md(block.question) or '(empty)'}**{about}"]
            for label, reply, mark in block.replies:
                told = f" ({md(mark)})" if mark else ""
                lines.append(f"  - {md(label)}{told}: {md(reply) or '(empty)'}")
            return "\n".join(lines)
        case Table():
            return table_md(block)


def table_md(table: Table) -> str:
    """A table as Markdown, its notes below."""
    ruler = ["---", *(["---" if table.is_text else "---:"] * (len(table.columns) - 1))]
    lines = [table.columns, ruler]
    for index, row in enumerate(table.rows):
        lines.append([f"**{md(cell)}**" if index in table.strong and cell else md(cell) for cell in row])
    head = [[md(column) for column in lines[0]], *lines[1:]]
    text = "\n".join(f"| {' | '.join(line)} |" for line in head)
    return text + "".join(f"\n\n{md(note)}" for note in table.notes)


CSS = """
:root { color-scheme: light dark; --bg: #ffffff; --fg: #1b2430; --dim: #5b6675; --line: #dfe4ea; --soft: #f5f7f9;
  --accent: #0f766e; --good: #15803d; --bad: #b42318; }
@media (prefers-color-scheme: dark) { :root { --bg: #12161c; --fg: #e4e8ee; --dim: #97a3b3; --line: #2b333e;
  --soft: #1a2029; --accent: #2dd4bf; --good: #4ade80; --bad: #ff8a7a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--fg); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 1rem; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; padding-top: .9rem; border-top: 1px solid var(--line); }
p { margin: .6rem 0; } ul { margin: .6rem 0; padding-left: 1.2rem; } li { margin: .25rem 0; }
.verdict { background: var(--soft); border-left: 4px solid var(--accent); border-radius: 6px; padding: .9rem 1.1rem;
  margin: 1.2rem 0; }
.verdict > p { font-size: 1.1rem; font-weight: 600; margin: 0; }
.scroll { overflow-x: auto; margin: .9rem 0 .4rem; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }
th, td { padding: .4rem .55rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line); }
tbody tr:last-child > * { border-bottom: 0; }
thead th { color: var(--dim); font-weight: 600; background: var(--soft); }
td { white-space: nowrap; } tbody th { font-weight: 400; min-width: 9rem; }
th:first-child, .text th, .text td { text-align: left; } thead th { vertical-align: bottom; }
tr.strong > * { font-weight: 650; } tr.strong > :first-child { color: var(--accent); }
.note { color: var(--dim); font-size: .85rem; margin: .3rem 0; }
img { display: block; width: 46rem; max-width: 100%; height: auto; margin: 1rem auto; }
.example { border: 1px solid var(--line); border-radius: 6px; padding: .8rem 1rem; margin: .9rem 0; }
.example h3 { font-size: 1rem; margin: 0; } dl { margin: .4rem 0 0; } dt { color: var(--dim); font-size: .85rem;
  margin-top: .5rem; } dd { margin: 0; }
.said { white-space: pre-wrap; unicode-bidi: isolate; } .right { color: var(--good); } .wrong { color: var(--bad); }
"""
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{css}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{body}
</main>
</body>
</html>
"""


def html_page(title: str, blocks: Sequence[Block], pictures: Mapping[str, Drawn]) -> str:
    """The report as one self-contained HTML file; `pictures` are those that the blocks name."""
    body = "\n".join(block_html(block, pictures) for block in blocks)
    return PAGE.format(title=esc(title), css=CSS, body=body)


def esc(text: str) -> str:
    """Text for HTML, quotes escaped too."""
    return escape(shown(text), quote=True)


def block_html(block: Block, pictures: Mapping[str, Drawn]) -> str:
    """One block as HTML."""
    match block:
        case Heading():
            return f"<h2>{esc(block.text)}</h2>"
        case Paragraph():
            return f"<p>{esc(block.text)}</p>"
        case Verdict():
            items = bullets_html(block.items) if block.items else ""
            return f'<div class="verdict"><p>{esc(block.headline)}</p>{items}</div>'
        case Bullets():
            return bullets_html(block.items)
        case Picture():
            return picture_html(block, pictures[block.name])
        case Example():
            about = f'<div class="note">{esc(block.about)}</div>' if block.about else ""
            replies = "".join(
                f'<dt>{esc(label)}{mark_html(mark)}</dt><dd class="said">{esc(reply) or "(empty)"}</dd>'
                for label, reply, mark in block.replies
            )
            question = esc(block.question) or "(empty)"
            return f'<div class="example"><h3 class="said">{question}</h3>{about}<dl>{replies}</dl></div>'
        case Table():
            return table_html(block)


def bullets_html(items: Sequence[str]) -> str:
    """A list as HTML."""
    return "<ul>" + "".join(f"<li>{esc(item)}</li>" for item in items) + "</ul>"


def mark_html(mark: str) -> str:
    """Whether a reply is right, in words and in colour."""
    kind = mark if mark in ("right", "wrong") else "note"
    return f' · <span class="{kind}">{esc(mark)}</span>' if mark else ""


def picture_html(picture: Picture, drawn: Drawn) -> str:
    """A picture for light and dark pages, inlined."""
    light, dark = (base64.b64encode(png).decode() for png in (drawn.light, drawn.dark))
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="data:image/png;base64,{dark}">'
        f'<img alt="{esc(picture.alt)}" src="data:image/png;base64,{light}"></picture>'
    )


def table_html(table: Table) -> str:
    """A table that scrolls on narrow screens, its notes below."""
    head = "".join(f'<th scope="col">{esc(column)}</th>' for column in table.columns)
    rows = []
    for index, (first, *others) in enumerate(table.rows):
        cells = "".join(f"<td>{esc(cell)}</td>" for cell in others)
        strong = ' class="strong"' if index in table.strong else ""
        rows.append(f'<tr{strong}><th scope="row">{esc(first)}</th>{cells}</tr>')
    kind = ' class="text"' if table.is_text else ""
    notes = "".join(f'<p class="note">{esc(note)}</p>' for note in table.notes)
    body = f"<table{kind}><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="scroll">{body}</div>{notes}'
