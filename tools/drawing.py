"""An SVG that is legible in light and in dark: shapes and text with named colours."""
import re
from html import escape

# name: (light, dark). c0 ... c7 tell series apart for readers who see colours differently as well
# (after Okabe and Ito), each lightened for a dark page.
COLOURS = {
    "ink": ("#1f2328", "#e6edf3"),
    "soft": ("#59636e", "#9da7b1"),
    "line": ("#d1d9e0", "#3d444d"),
    "page": ("#ffffff", "#0d1117"),
    "c0": ("#0b63c4", "#58a6ff"),
    "c1": ("#c2500a", "#ff9a57"),
    "c2": ("#00795c", "#3fcf9f"),
    "c3": ("#a3387f", "#f08fcb"),
    "c4": ("#6b6b00", "#d6cf4a"),
    "c5": ("#5c4bc4", "#a99cff"),
    "c6": ("#66707a", "#b4bec8"),
    "c7": ("#8a2f2f", "#ff8f8f"),
}


def style():
    def rules(shade):
        return "".join(f".{name}{{fill:{pair[shade]}}}.{name}-line{{stroke:{pair[shade]}}}"
                       for name, pair in COLOURS.items())
    return ("<style>text{font-family:system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif}"
            ".mono{font-family:ui-monospace,'SF Mono',Menlo,Consolas,'DejaVu Sans Mono',monospace}"
            + rules(0) + "@media(prefers-color-scheme:dark){" + rules(1) + "}</style>")


def subscripts(words, size):
    """x_i: one letter below the line. SVG has no markup for it that every viewer knows."""
    down, small = 0.28 * size, 0.72 * size
    return re.sub(r"_(\w)([^_]*)", rf'<tspan dy="{down:.1f}" font-size="{small:.1f}">\1</tspan>'
                  rf'<tspan dy="-{down:.1f}">\2</tspan>', words)


class Drawing:
    def __init__(self, width, height, title):
        self.width, self.height = width, height
        self.parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
                      f'width="{width}" height="{height}" role="img">',
                      f"<title>{escape(title)}</title>", style()]
        self.rect(0, 0, width, height, "page")

    def rect(self, x, y, w, h, colour, opacity=1.0, stroke=None, radius=0):
        outline = ' stroke-width="1"' if stroke else ""
        self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" '
                          f'rx="{radius}" class="{colour}{f" {stroke}-line" if stroke else ""}" '
                          f'fill-opacity="{opacity:.2f}"{outline}/>')

    def path(self, points, colour, width=1.0, dash=None):
        d = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        self.parts.append(f'<path d="{d}" class="{colour}-line" fill="none" stroke-width="{width}"'
                          + (f' stroke-dasharray="{dash}"' if dash else "") + "/>")

    def arrow(self, x0, y0, x1, y1, colour="soft"):
        """Along one axis, its head at the second end."""
        self.path([(x0, y0), (x1, y1)], colour, 1.5)
        dx, dy = (x1 > x0) - (x1 < x0), (y1 > y0) - (y1 < y0)
        ends = [(x1 - 6 * dx + 4 * dy, y1 - 6 * dy + 4 * dx),
                (x1, y1), (x1 - 6 * dx - 4 * dy, y1 - 6 * dy - 4 * dx)]
        self.path(ends, colour, 1.5)

    def polygon(self, points, colour, hollow=False):
        d = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        fill = "page" if hollow else colour
        self.parts.append(f'<polygon points="{d}" class="{fill} {colour}-line" '
                          'stroke-width="1.5"/>')

    def text(self, x, y, words, size=13, colour="ink", anchor="start", bold=False, mono=False,
             turn=0, formula=False):
        names = colour + (" mono" if mono else "")
        inner = subscripts(escape(words), size) if formula else escape(words)
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" class="{names}" '
                          f'text-anchor="{anchor}"' + (' font-weight="600"' if bold else "")
                          + (f' transform="rotate({turn} {x:.1f} {y:.1f})"' if turn else "")
                          + f">{inner}</text>")

    def save(self, path):
        with open(path, "w", encoding="utf-8") as file:
            file.write("\n".join(self.parts) + "\n</svg>\n")
