"""Passages: the lines and sentences of a chunk, one of which a message can be bound to.

Left alone, speaker A asks about what strikes it, and again about the same (arXiv 2606.32002); bound to a passage drawn
without regard to what it says, its messages are about all of the text alike.

A line is a passage; one of more than MAX_LINE characters is cut into its sentences. A heading, and a line that ends in
a colon, opens what follows and is none itself: it stands in front of each passage below it, several of them where
they stand one right below the other, as a comment and a definition do. Rules and other lines without a letter or digit
are left out.
"""

import re

MAX_LINE = 160
_HEADING = re.compile(r"\s{0,3}#{1,6}\s")
_SENTENCE_END = re.compile(r"(?<=[.!?。！？])\s+")
_WORDS = re.compile(r"\w")


def passages(text: str, min_len: int = 1) -> list[str]:
    r"""The passages of `text` in order, neighbours below one heading joined until they have `min_len` characters.

    A text without a passage, as one of headings alone, is one itself.

    >>> passages("# Ward\n\nZubis Vobun:\nRoom: N-850\nAllergy: pafin")
    ['Zubis Vobun:\nRoom: N-850', 'Zubis Vobun:\nAllergy: pafin']
    """
    found: list[tuple[str, str]] = []  # heading, text below it
    heading, is_behind_one = "", False
    for line in text.splitlines():
        if not _WORDS.search(line):
            is_behind_one = False
            continue
        if _HEADING.match(line) or line.rstrip().endswith(":"):
            heading = f"{heading}\n{line.strip()}" if is_behind_one else line.strip()
            is_behind_one = True
            continue
        is_behind_one = False
        for part in _SENTENCE_END.split(line.strip()) if len(line) > MAX_LINE else [line.strip()]:
            if found and found[-1][0] == heading and len(found[-1][1]) < min_len:
                joint = "\n" if part == line.strip() else " "
                found[-1] = (heading, f"{found[-1][1]}{joint}{part}")
            else:
                found.append((heading, part))
    return [f"{above}\n{part}" if above else part for above, part in found] or [text.strip()]
