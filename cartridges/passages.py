"""Passages: the lines and sentences of a chunk, one of which a message can be bound to.

Left alone, speaker A asks about what strikes it, and again about the same (arXiv 2606.32002); bound to a passage drawn
without regard to what it says, its messages are about all of the text alike.

A line is a passage; one of more than MAX_LINE characters is cut into its sentences, and what is still of more than
MAX_PART between words. A heading, and a line that ends in a colon, opens what follows and is none itself: it stands in
front of each passage below it, the last two of them where they stand one right below the other, as a comment and a
definition do. What a colon opens ends at the next empty line. Rules and other lines without a letter or digit are left
out.
"""

import re
import textwrap

MAX_LINE, MAX_PART = 160, 480
_HEADING = re.compile(r"\s{0,3}#{1,6}\s")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])\s*")
_WORDS = re.compile(r"\w")


def passages(text: str, min_len: int = 1) -> list[str]:
    r"""The passages of `text` in order, neighbours below one heading joined until they have `min_len` characters.

    A text without a passage, as one of headings alone, is one itself.

    >>> passages("# Ward\n\nZubis Vobun:\nRoom: N-850\nAllergy: pafin")
    ['Zubis Vobun:\nRoom: N-850', 'Zubis Vobun:\nAllergy: pafin']
    """
    joined: list[tuple[str, list[str]]] = []  # heading, what stands below it
    length = 0  # of the last one
    for heading, part, joint in _parts(text):
        if joined and joined[-1][0] == heading and length < min_len:
            joined[-1][1].extend((joint, part))
            length += len(joint) + len(part)
        else:
            joined.append((heading, [part]))
            length = len(part)
    found = [f"{heading}\n{''.join(parts)}" if heading else "".join(parts) for heading, parts in joined]
    return found or [text.strip()]


def _parts(text: str) -> list[tuple[str, str, str]]:
    """Lines and sentences, each with its heading and with what joins it to the one before."""
    found: list[tuple[str, str, str]] = []
    title, opened, num_below, is_behind_heading = "", "", 0, False  # `opened` by a colon, with `num_below` it
    for line in text.splitlines():
        if not _WORDS.search(line):
            if not line.strip() and num_below:
                opened = ""
            is_behind_heading = False
            continue
        stripped = line.strip()
        if _HEADING.match(line) or stripped.endswith(":"):
            above = (opened or title) if is_behind_heading else ""
            heading = "\n".join([*above.split("\n")[-1:], stripped[:MAX_LINE]]) if above else stripped[:MAX_LINE]
            title, opened = (title, heading) if stripped.endswith(":") else (heading, "")
            num_below, is_behind_heading = 0, True
            continue
        is_behind_heading = False
        for number, part in enumerate(_cut(stripped)):
            found.append((opened or title, part, " " if number else "\n"))
            num_below += 1
    return found


def _cut(line: str) -> list[str]:
    """The line, or its sentences where it is long, cut between words where those are."""
    if len(line) <= MAX_LINE:
        return [line]
    sentences = [sentence for sentence in _SENTENCE_END.split(line) if sentence]
    return [part for sentence in sentences for part in textwrap.wrap(sentence, MAX_PART, break_on_hyphens=False)]
