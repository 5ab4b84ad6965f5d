#!/usr/bin/env python3
"""figure_kl.py KL.json OUT.svg: divergence of the cache against its size, a panel for each model.

KL.json: a list of {"series", "bits_per_element", "kl", "model", "command"}; bits with everything
included (scales too), kl = mean KL(full || compressed) in nats a token, command = what measured it.
A command in ⟨…⟩ is no command of this project: its points are drawn hollow.
"""
import json
import math
import sys

from drawing import Drawing

FIELDS = {"series": str, "bits_per_element": (int, float), "kl": (int, float), "model": str,
          "command": str}
TOP, BOTTOM, LEGEND = 74, 424, 492           # of the panels; where the legend begins
WIDTH, MARGIN, GAP = 960, 66, 62


def read(path):
    try:
        points = json.load(open(path, encoding="utf-8"))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {path}: {error}")
    if not isinstance(points, list) or not all(isinstance(point, dict) for point in points):
        sys.exit(f"error: {path}: expected a list of objects")
    for n, point in enumerate(points):
        for field, kind in FIELDS.items():
            if not isinstance(point.get(field), kind):
                sys.exit(f"error: {path}: entry {n}: expected a {field}, "
                         f"found {point.get(field)!r}")
        if not (point["bits_per_element"] > 0 and point["kl"] > 0):
            sys.exit(f"error: {path}: entry {n}: expected bits and kl above 0 (logarithmic axes)")
    if not points:
        sys.exit(f"error: {path}: expected at least one point")
    return points


def in_order(points, field):
    return list(dict.fromkeys(point[field] for point in points))


def marker(figure, shape, x, y, colour, hollow):
    r = 5
    corners = {
        0: [(x + r * math.cos(a * math.pi / 8), y + r * math.sin(a * math.pi / 8))
            for a in range(16)],
        1: [(x - r, y - r + 1), (x + r, y - r + 1), (x + r, y + r - 1), (x - r, y + r - 1)],
        2: [(x, y - r - 1), (x + r + 1, y), (x, y + r + 1), (x - r - 1, y)],
        3: [(x, y - r - 1), (x + r + 1, y + r - 1), (x - r - 1, y + r - 1)],
        4: [(x, y + r + 1), (x + r + 1, y - r + 1), (x - r - 1, y - r + 1)],
    }
    figure.polygon(corners[shape % 5], colour, hollow)


class Panel:
    """One model's axes; points: those of all models, so that the panels compare."""

    def __init__(self, figure, left, width, points):
        self.figure, self.left, self.width = figure, left, width
        bits = [point["bits_per_element"] for point in points]
        kl = [point["kl"] for point in points]
        self.low_x = math.log2(min(bits + [1])) - 0.15
        self.high_x = math.log2(max(bits + [16])) + 0.1
        self.low_y, self.high_y = math.floor(math.log10(min(kl))), math.ceil(math.log10(max(kl)))

    def at(self, bits, kl):
        x = (math.log2(bits) - self.low_x) / (self.high_x - self.low_x)
        y = (math.log10(kl) - self.low_y) / (self.high_y - self.low_y)
        return self.left + x * self.width, BOTTOM - y * (BOTTOM - TOP)

    def axes(self, model, y_label):
        figure, right = self.figure, self.left + self.width
        figure.text(self.left, TOP - 14, model, 14, bold=True)
        for power in range(self.low_y, self.high_y + 1):
            y = self.at(1, 10.0 ** power)[1]
            figure.path([(self.left, y), (right, y)], "line", 1)
            figure.text(self.left - 8, y + 4, f"{10.0 ** power:g}", 12, "soft", "end")
        for bits in (1, 1.5, 2, 3, 4, 6, 8, 16):
            x = self.at(bits, 1)[0]
            figure.path([(x, TOP), (x, BOTTOM)], "line", 1)
            figure.text(x, BOTTOM + 18, f"{bits:g}", 12, "soft", "middle")
        figure.text(self.left + self.width / 2, BOTTOM + 38, "bits an element, scales included "
                    "(full f16: 16)", 12, "soft", "middle")
        if y_label:
            figure.text(11, (TOP + BOTTOM) / 2, "KL(full || compressed), nats a token", 12, "soft",
                        "middle", turn=-90)

    def line(self, points, look):
        colour, shape, width = look
        points = sorted(points, key=lambda point: point["bits_per_element"])
        places = [self.at(point["bits_per_element"], point["kl"]) for point in points]
        self.figure.path(places, colour, width)
        for point, (x, y) in zip(points, places):
            marker(self.figure, shape, x, y, colour, point["command"].startswith("⟨"))


def legend(figure, looks, hollow):
    column = (WIDTH - 40) / 3
    for n, (name, (colour, shape, width)) in enumerate(looks.items()):
        x, y = 26 + n % 3 * column, LEGEND + n // 3 * 24
        figure.path([(x, y), (x + 34, y)], colour, width)
        marker(figure, shape, x + 17, y, colour, False)
        figure.text(x + 44, y + 5, name, 13)
    if hollow:
        figure.text(26, figure.height - 14, "Hollow: not measured with this program.", 12, "soft")


def main():
    if len(sys.argv) != 3:
        sys.exit("usage: figure_kl.py KL.json OUT.svg")
    points = read(sys.argv[1])
    names, models = in_order(points, "series"), in_order(points, "model")
    if len(names) > 8:
        sys.exit(f"error: {sys.argv[1]}: {len(names)} series, and colours for 8")
    looks = {name: (f"c{n}", n, 3 if name.startswith("stief") else 1.5)
             for n, name in enumerate(names)}
    hollow = [point for point in points if point["command"].startswith("⟨")]
    rows = (len(names) + 2) // 3
    figure = Drawing(WIDTH, LEGEND + rows * 24 + (22 if hollow else 0) + 8,
                     "KL divergence against the size of the cache")
    figure.text(20, 28, "What the cache costs: down and left is better", 17, bold=True)
    width = (WIDTH - 2 * MARGIN + 46 - GAP * (len(models) - 1)) / len(models)
    for n, model in enumerate(models):
        here = [point for point in points if point["model"] == model]
        panel = Panel(figure, MARGIN + n * (width + GAP), width, points)
        panel.axes(model, n == 0)
        for name in reversed(names):                      # ours, which are listed first, on top
            series = [point for point in here if point["series"] == name]
            if series:
                panel.line(series, looks[name])
    legend(figure, looks, hollow)
    figure.save(sys.argv[2])
    if hollow:
        print(f"{sys.argv[1]}: {len(hollow)} points are not measured with this program",
              file=sys.stderr)


main()
