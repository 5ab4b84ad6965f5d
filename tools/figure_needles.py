#!/usr/bin/env python3
"""figure_needles.py NEEDLES.json OUT.svg: of the needles that the full cache finds, what caches keep.

NEEDLES.json: a list of {"cache", "bits", "full", "kept", "flagged", "command"}: of `full` needles that
the full cache finds `kept` are found with the compressed one too; of the others an audit flags
`flagged`; command = what measured it.
"""
import json
import sys

from drawing import Drawing

FIELDS = {"cache": str, "bits": (int, float), "full": int, "kept": int, "flagged": int,
          "command": str}
WIDTH, LEFT, RIGHT, TOP, ROW, BAR = 800, 290, 60, 84, 30, 18
LOOKS = {"kept": ("c0", 1.0), "lost, and flagged by an audit": ("c1", 1.0),
         "lost, and not flagged": ("c7", 0.45)}


def read(path):
    try:
        rows = json.load(open(path, encoding="utf-8"))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {path}: {error}")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        sys.exit(f"error: {path}: expected a list of objects")
    for n, row in enumerate(rows):
        for field, kind in FIELDS.items():
            if not isinstance(row.get(field), kind):
                sys.exit(f"error: {path}: entry {n}: expected {field}, found {row.get(field)!r}")
        if not 0 <= row["kept"] + row["flagged"] <= row["full"] or row["full"] == 0:
            sys.exit(f"error: {path}: entry {n}: more kept and flagged than the full cache finds")
    return sorted(rows, key=lambda row: -row["bits"])


def bar(figure, y, row):
    parts = (row["kept"], row["flagged"], row["full"] - row["kept"] - row["flagged"])
    x, unit = LEFT, (WIDTH - LEFT - RIGHT) / row["full"]
    for count, (colour, opacity) in zip(parts, LOOKS.values()):
        if count:
            figure.rect(x, y, count * unit, BAR, colour, opacity)
        x += count * unit
    figure.text(LEFT - 10, y + 14, f'{row["cache"]}, {row["bits"]:g} bits', 13, anchor="end")
    figure.text(x + 8, y + 14, f'{row["kept"]}/{row["full"]}', 12, "soft")


def main():
    if len(sys.argv) != 3:
        sys.exit("usage: figure_needles.py NEEDLES.json OUT.svg")
    rows = read(sys.argv[1])
    figure = Drawing(WIDTH, TOP + (len(rows) + 1) * ROW + 12,
                     "Needles kept, lost and flagged, by cache")
    figure.text(20, 28, "What is still found of what the full cache finds", 17, bold=True)
    x = 20
    for name, (colour, opacity) in LOOKS.items():
        figure.rect(x, 44, 14, 14, colour, opacity)
        figure.text(x + 20, 56, name, 13)
        x += 60 + 7.2 * len(name)
    for n, row in enumerate(rows):
        bar(figure, TOP + n * ROW, row)
    y = TOP + len(rows) * ROW
    figure.rect(LEFT, y, WIDTH - LEFT - RIGHT, BAR, *LOOKS["kept"])
    figure.text(LEFT - 10, y + 14, "any of these, --risk exact", 13, anchor="end", bold=True)
    figure.text(WIDTH - RIGHT + 8, y + 14, "all", 12, "soft")
    figure.save(sys.argv[2])


main()
