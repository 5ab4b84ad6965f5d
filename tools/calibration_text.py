#!/usr/bin/env python3
"""calibration_text.py NOVELS.txt[.xz] > models/calibration.txt

The mixed text that stief calibrate learns from where none is given: passages of novels in the public
domain, code of this project as it stood at one commit, and conversations, letters, lists, tables and
sums that calibration_talk.py and calibration_sums.py make. The same input gives the same bytes."""
import lzma
import random
import re
import subprocess
import sys

import calibration_sums
import calibration_talk

COMMIT = "5435ec8"  # of the code that is quoted

# Title, author, year, and the lines of the novels' file that are safely inside of it.
BOOKS = [
    ("Lorna Doone", "R. D. Blackmore", 1869, 45000, 51200),
    ("The Rosary", "Florence L. Barclay", 1909, 15900, 19400),
    ("Little Lord Fauntleroy", "Frances Hodgson Burnett", 1886, 76300, 78600),
    ("A Little Princess", "Frances Hodgson Burnett", 1905, 78750, 81900),
    ("Shirley", "Charlotte Brontë", 1849, 90500, 99800),
    ("Villette", "Charlotte Brontë", 1853, 100250, 106500),
    ("Nostromo", "Joseph Conrad", 1904, 119800, 123800),
    ("Great Expectations", "Charles Dickens", 1861, 153300, 159500),
    ("Oliver Twist", "Charles Dickens", 1838, 160300, 166700),
    ("Daniel Deronda", "George Eliot", 1876, 179800, 188000),
    ("Felix Holt", "George Eliot", 1866, 188400, 193700),
]

CODE = ["src/backend/row_format.h", "src/forward/sampler.cpp", "cuda/norm.cu", "tools/drawing.py",
        "tools/tables.sh", "src/formats/chat.cpp", "src/base/threads.cpp", "tools/unicode_table.py",
        "src/calibrate/stiefel.cpp", "Makefile", "models/parlour/config.json", "src/base/json.cpp",
        "tools/core.sh", "src/backend/backend.h", "src/forward/generate.cpp", "src/model/rope.cpp",
        "models/parlour/MODEL.md", "src/commands/tokenize.cpp"]


def novels(path):
    opener = lzma.open if path.endswith(".xz") else open
    with opener(path, "rt", encoding="utf-8") as file:
        return file.read().split("\n")


def paragraphs(lines, book):
    return [line.strip() for line in lines[book[3]:book[4]] if line.strip()]


def passages(lines, pick, wanted, size, used=()):
    """From each book, so many runs of paragraphs of that size, the best by pick in each stretch."""
    found = []
    for book in BOOKS:
        all_of_it = paragraphs(lines, book)
        stretch = len(all_of_it) // wanted
        for part in range(wanted):
            best = None
            for begin in range(part * stretch, (part + 1) * stretch - 12, 3):
                end, length = begin, 0
                while end < len(all_of_it) and length < size:
                    length += len(all_of_it[end])
                    end += 1
                run = all_of_it[begin:end]
                score = pick(run)
                plain = all(len(p) > 24 and not re.match(r"^[0-9IVXLC .]+$|CHAPTER", p) for p in run)
                fresh = not any(p in one for one in used for p in run if len(p) > 60)
                if plain and fresh and length < 2 * size and (best is None or score > best[0]):
                    best = (score, run)
            if best:
                found.append("\n\n".join(best[1]))
    return found


def quoted(run):
    return sum(p[0] in "\"'" for p in run) / len(run)


def code():
    for path in CODE:
        shown = subprocess.run(["git", "show", f"{COMMIT}:{path}"], capture_output=True, check=True)
        text = shown.stdout.decode()
        assert not re.search("^=== ", text, re.M), path
        yield text if path == "Makefile" or "." not in path else text[:9000]


def alternate(*lists):
    """One of each in turn, so that a text's last tenth is of all kinds."""
    longest = max(len(one) for one in lists)
    return [one[i * len(one) // longest] for i in range(longest) for one in lists
            if i == 0 or i * len(one) // longest != (i - 1) * len(one) // longest]


def part(name, pieces):
    out = [f"=== part {name}"]
    for i, piece in enumerate(pieces):
        if isinstance(piece, str):
            out += ([] if i == 0 else ["=== document"]) + [piece.strip(), ""]
        else:
            out.append("=== conversation")
            for role, content in piece:
                out += [f"=== {role}", content.strip()]
            out.append("")
    return "\n".join(out) + "\n"


HEAD = """=== stief text
What stief calibrate learns from where no text is given: small and mixed. tools/calibration_text.py
made this file. A text of your own may be marked the same way: the first line as it stands here, then

    === part NAME         what follows, up to the next part, is measured by that name
    === document          another piece of the part
    === conversation      its turns follow, which are put into the chat template of the model:
    === system            at most one, the first
    === user
    === assistant

each at the beginning of a line of its own.

Prose and dialogue: passages of novels in the public domain, from the texts of
https://github.com/computationalstylistics/100_english_novels:
%s
Code: files of this project. All else was made for it. Both under the project's MIT licence.

"""


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: calibration_text.py NOVELS.txt[.xz] > models/calibration.txt")
    lines = novels(sys.argv[1])
    names = "\n".join(f"    {b[1]}, {b[0]} ({b[2]})" for b in BOOKS)
    seed = random.Random(20)
    out = HEAD % names
    prose = passages(lines, lambda run: -quoted(run), 4, 2300)
    out += part("prose", prose)
    out += part("dialogue", passages(lines, quoted, 4, 1800, prose))
    out += part("conversations", calibration_talk.conversations(seed))
    out += part("code", alternate(list(code()), calibration_sums.snippets(seed)))
    out += part("letters and lists", calibration_talk.writings(seed))
    out += part("sums and tables", calibration_sums.documents(seed))
    sys.stdout.write(out)


if __name__ == "__main__":
    main()
