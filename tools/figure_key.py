#!/usr/bin/env python3
"""figure_key.py OUT.svg: a key's life, from its projection to a score.

The row that it shows is laid out as src/backend/row_format.h says; widths, steps and the size of a
group are read from there, so that the picture and the code cannot disagree.
"""
import math
import os
import re
import sys

from drawing import Drawing

HEADER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../src/backend/row_format.h")
D = 64                                                  # of the head that is drawn
COUNT = {6: 8, 5: 8, 4: 16, 3: 16, 2: 8}                # its coordinates at each width
LEFT, RIGHT = 272, 940                                  # the drawings; words stand left of them
CELL = (RIGHT - LEFT) / D
TONE = {16: "c6", 8: "c7", 6: "c5", 5: "c0", 4: "c2", 3: "c4", 2: "c1", 1: "c3", 0: "line"}


def row_format():
    """Group size and widths of the header."""
    text = open(HEADER, encoding="utf-8").read()
    group = re.search(r"ROW_GROUP = (\d+);", text)
    bits = re.search(r"BITS = \{([\d, ]+)\}", text)
    if not group or not bits:
        sys.exit(f"error: {HEADER}: expected ROW_GROUP and BITS; has the format changed?")
    return int(group[1]), [int(one) for one in bits[1].split(",")]


def widths(menu):
    if not all(bits in menu for bits in COUNT):
        sys.exit(f"error: the figure's widths {sorted(COUNT)} are not all in the format's {menu}")
    listed = [bits for bits in sorted(COUNT, reverse=True) for _ in range(COUNT[bits])]
    return listed + [0] * (D - len(listed))


def heading(figure, number, y, name, *lines):
    figure.text(20, y, f"{number}  {name}", 15, bold=True)
    for i, line in enumerate(lines):
        figure.text(41, y + 20 + 18 * i, line, 13, "soft", formula=True)


def bars(figure, y, heights, tones):
    for i, (height, tone) in enumerate(zip(heights, tones)):
        figure.rect(LEFT + i * CELL + 1, y - height, CELL - 2, height, tone)


def coordinates(figure):
    """k in its own coordinates and in learned ones: energy everywhere, then in front."""
    plain = [8 + 26 * abs(math.sin(2.3 * i + 0.7 * math.sin(5.1 * i))) for i in range(D)]
    heading(figure, 1, 62, "Projection", "k = x W_kᵀ, d = 64 numbers of a",
            "kv head; rotated by its position*")
    bars(figure, 90, plain, ["soft"] * D)
    figure.arrow((LEFT + RIGHT) / 2, 97, (LEFT + RIGHT) / 2, 118)
    heading(figure, 2, 142, "Coordinates", "c = (k − μ, rotated as k is) E:",
            "what the model looks at, first")
    bars(figure, 172, [4 + 42 * math.exp(-i / 16) for i in range(D)], ["c0"] * D)
    figure.arrow((LEFT + RIGHT) / 2, 179, (LEFT + RIGHT) / 2, 200)


def bits_of(figure, listed):
    """Bits of each coordinate: stairs, and their names under them."""
    heading(figure, 3, 226, "Bits", "by price: nats of the model’s",
            "final divergence an error costs")
    bars(figure, 262, [7 * bits if bits else 1.5 for bits in listed], [TONE[b] for b in listed])
    for bits in sorted(set(listed), reverse=True):
        first, count = listed.index(bits), listed.count(bits)
        words = f"{count} × {bits} bits" if bits else f"{count}: none"
        figure.text(LEFT + (first + count / 2) * CELL, 279, words, 12, anchor="middle")
    figure.arrow((LEFT + RIGHT) / 2, 287, (LEFT + RIGHT) / 2, 306)


def packed(figure, listed, group):
    """The row byte by byte, and one group of codes bit by bit."""
    groups = [listed[i] for i in range(0, D, group) if listed[i]]
    size = sum(groups) + 1
    heading(figure, 4, 330, "The packed row", f"{size} bytes where f16 has {2 * D}:",
            f"{8 * size / D:g} bits an element")
    byte, x, zoomed = (RIGHT - LEFT) / size, LEFT, None
    for bits in groups:
        figure.rect(x + 1, 316, bits * byte - 2, 26, TONE[bits], radius=3)
        for i in range(1, bits):
            figure.path([(x + i * byte, 318), (x + i * byte, 340)], "page", 1)
        if bits == 3 and zoomed is None:
            zoomed = x
        x += bits * byte
    figure.rect(x + 1, 316, byte - 2, 26, "ink", radius=3)
    figure.text(RIGHT, 357, "scale ρ, 1 byte", 12, anchor="end")
    figure.text(LEFT, 357, f"groups of {group} codes, widest first; b bits: b bytes", 12)
    zoom(figure, zoomed, 3 * byte, group)


def zoom(figure, x, width, group):
    """A group of codes of 3 bits: code i at bits 3i … 3i + 2, across the bytes' borders."""
    left, right, top = LEFT + 100, RIGHT - 100, 388
    figure.path([(x, 343), (x, 363), (left, top - 3)], "soft", 1, "3 3")
    figure.path([(x + width, 343), (x + width, 363), (right, top - 3)], "soft", 1, "3 3")
    bit = (right - left) / (3 * group)
    for i in range(group):
        figure.rect(left + 3 * i * bit + 1, top, 3 * bit - 2, 24, TONE[3], radius=3)
        figure.text(left + (3 * i + 1.5) * bit, top + 17, f"code {i}", 12, "page", "middle")
    for i in range(3):
        ends = [(left + (8 * i + part) * bit, top + 30) for part in (0.2, 7.8)]
        figure.path(ends, "soft", 1.5)
        figure.text(left + (8 * i + 4) * bit, top + 45, f"byte {i}: bits {8 * i} … {8 * i + 7}", 12,
                    "soft", "middle")


def ages(figure):
    """Positions from the first to the newest, each as high as its rows have bits."""
    heading(figure, 5, 462, "Age", "near tokens are looked at most:",
            "whole first, then in fewer bits")
    parts = [(4, 16, "first 4: whole"), (36, 2, "older: 2 bits"), (14, 4, "to 256: 4 bits"),
             (10, 16, "last 32: whole")]
    at, base = 0, 494
    for count, bits, words in parts:
        heights = [2.6 * bits] * count
        for i, height in enumerate(heights):
            figure.rect(LEFT + (at + i) * CELL + 1, base - height, CELL - 2, height, TONE[bits])
        anchor, x = "middle", LEFT + (at + count / 2) * CELL
        if at == 0:
            anchor, x = "start", LEFT
        if at + count == D:
            anchor, x = "end", RIGHT
        figure.text(x, base + 17, words, 12, anchor=anchor)
        at += count
    figure.text(LEFT + 22 * CELL, base - 22, "positions of one context, oldest left", 12, "soft",
                "middle")


def score(figure):
    heading(figure, 6, 552, "Score", "q̂ = q Dᵀ once a token; no key", "is ever rebuilt*")
    figure.rect(LEFT, 536, RIGHT - LEFT, 42, "line", 0.35, radius=6)
    figure.text((LEFT + RIGHT) / 2, 563,
                "q · k̃  =  q · R_s μ  +  ρ Σ_b Σ_i (Δ_b q̂_i) L_b(code_i)   →   softmax", 16,
                anchor="middle", formula=True)
    for i, line in enumerate([
            "* Keys are kept before rotation by default, which compresses better: then a tile of rows is "
            "unpacked, rebuilt (D) and",
            "rotated when it is read, once for the queries that share it. Values take the same way "
            "with bases of their own, unrotated."]):
        figure.text(20, 618 + 18 * i, line, 12, "soft")


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: figure_key.py OUT.svg")
    group, menu = row_format()
    listed = widths(menu)
    figure = Drawing(960, 652, "A key's life: projection, coordinates, bits, row, age, score")
    figure.text(20, 26, "A key’s life in the cache", 17, bold=True)
    coordinates(figure)
    bits_of(figure, listed)
    packed(figure, listed, group)
    ages(figure)
    score(figure)
    figure.save(sys.argv[1])


main()
