"""Sums, tables and short pieces of code for calibration_text.py."""
import json

from calibration_facts import COUNTRIES, MONTHS, NAMES, PLACES, SURNAMES, THINGS


def column(r):
    numbers = [r.randrange(10, 10 ** r.randrange(2, 5)) for _ in range(r.randrange(3, 7))]
    width = len(str(sum(numbers))) + 2
    return "\n".join([f"{n:>{width}}" for n in numbers] + ["-" * width, f"{sum(numbers):>{width}}"])


def steps(r):
    a, b, c = r.randrange(2, 20), r.randrange(2, 30), r.randrange(2, 12)
    x = r.randrange(2, 15)
    kinds = [
        f"Solve {a}x + {b} = {a * x + b}.\n\n{a}x = {a * x + b} − {b} = {a * x}\nx = {a * x} / {a} = {x}\n\n"
        f"Check: {a} · {x} + {b} = {a * x + b}.",
        f"The area of a rectangle of {a} m by {b} m is {a} · {b} = {a * b} m², its circumference "
        f"2 · ({a} + {b}) = {2 * (a + b)} m. Tiles of {c * 10} cm by {c * 10} cm would be "
        f"{a * b * 100 / c / c:.0f}, a few more for the edges.",
        f"{a * b} divided by {a} is {b}, because {a} × {b} = {a * b}. {a * b + 1} divided by {a} is {b}, "
        f"remainder 1.",
        f"{c * 5}% of {a * 100} = {a * 100} · {c * 5} / 100 = {a * c * 5}. A price of {a * 100} that rises "
        "by "
        f"{c * 5}% becomes {a * 100 + a * c * 5}.",
        f"{a}/{b} + {c}/{b} = {a + c}/{b} = {(a + c) / b:.4f}\n"
        f"{a}/{b} · {c} = {a * c}/{b} = {a * c / b:.4f}\n"
        f"{a}² + {b}² = {a * a} + {b * b} = {a * a + b * b}, √{a * a + b * b} ≈ {(a * a + b * b) ** 0.5:.3f}",
        "\n".join(f"{i} × {a} = {i * a}" for i in range(1, 11)),
        f"Speed {a * 5} km/h for {c} h: {a * 5 * c} km. The way back at {a * 5 + 10} km/h takes "
        f"{a * 5 * c / (a * 5 + 10):.2f} h.",
        f"{a * 17} in binary is {a * 17:b}, in hexadecimal {a * 17:#x}; {b} is {b:b} and {b:#x}.",
    ]
    return "\n\n".join(r.sample(kinds, 4))


def table(r):
    names = r.sample(NAMES, 6)
    kind = r.randrange(6)
    if kind == 0:
        rows = [f"| {n} | {r.randrange(18, 80)} | {r.choice(COUNTRIES)[1]} | {r.uniform(0, 100):.1f} |"
                for n in names]
        return "\n".join(["| name | age | city | points |", "|---|---|---|---|"] + rows)
    if kind == 1:
        rows = [f"{r.randrange(1000, 9999)},{r.choice(THINGS)},{r.randrange(1, 200)},"
                f"{r.uniform(0.1, 90):.2f},"
                f"2{r.randrange(10, 25):03d}-{r.randrange(1, 13):02d}-{r.randrange(1, 29):02d}"
                for _ in range(8)]
        return "\n".join(["id,article,pieces,price,date"] + rows)
    if kind == 2:
        return "\n".join([f"{'month':<12}{'rain mm':>8}{'sun h':>7}{'low':>6}{'high':>6}"] + [
            f"{m:<12}{r.randrange(5, 140):>8}{r.randrange(40, 300):>7}{r.uniform(-8, 15):>6.1f}"
            f"{r.uniform(15, 34):>6.1f}" for m in MONTHS])
    if kind == 3:
        return "Country\tCapital\tLanguage\n" + "\n".join("\t".join(c[:3]) for c in r.sample(COUNTRIES, 7))
    if kind == 4:
        return "\n".join(f"{h:02d}:{r.randrange(60):02d}  {r.choice(COUNTRIES)[1]:<14} platform "
                         f"{r.randrange(1, 20):>2}  "
                         + r.choice(["on time", "5 min late", "cancelled", "on time"])
                         for h in range(6, 15))
    return "\n".join(
        f"2024-{r.randrange(1, 13):02d}-{r.randrange(1, 29):02d}T{r.randrange(24):02d}:{r.randrange(60):02d}:"
        f"{r.randrange(60):02d}Z {r.choice(['INFO', 'INFO', 'WARN', 'ERROR', 'DEBUG'])} "
        + r.choice([f"request id={r.getrandbits(32):08x} took {r.randrange(1, 900)} ms",
                    f"cache miss for key user:{r.randrange(9999)}", "connection closed by peer",
                    f"wrote {r.randrange(1, 512)} blocks to /var/data/{r.choice(THINGS)}.db",
                    f"retry {r.randrange(1, 5)} of 5 after timeout"]) for _ in range(9))


def record(r):
    country = r.choice(COUNTRIES)
    return json.dumps({
        "id": r.getrandbits(24), "name": f"{r.choice(NAMES)} {r.choice(SURNAMES)}",
        "active": r.random() < 0.7, "balance": round(r.uniform(-50, 900), 2),
        "address": {"city": country[1], "country": country[0], "street": None},
        "tags": r.sample(THINGS, r.randrange(0, 4)),
        "visits": [{"place": r.choice(PLACES), "minutes": r.randrange(5, 90)}
                   for _ in range(r.randrange(1, 3))],
    }, indent=2, ensure_ascii=False)


def documents(r):
    pieces, size = [], 0
    while size < 58000:
        piece = r.choice([column, steps, steps, table, table, record])(r)
        pieces.append(piece)
        size += len(piece)
    return pieces


# ---- code -----------------------------------------------------------------------------------------

C = ["""#include <stdio.h>
#include <stdlib.h>

/* Reads numbers and prints their @mean@. */
int main(void) {
    double sum = 0, x;
    long n = 0;
    while (scanf("%lf", &x) == 1) {
        sum += x;
        n++;
    }
    if (n == 0) {
        fprintf(stderr, "no @things@\\n");
        return EXIT_FAILURE;
    }
    printf("%g\\n", sum / n);
    return EXIT_SUCCESS;
}""", """struct node {
    char *@key@;
    int @count@;
    struct node *next;
};

static struct node *find(struct node *list, const char *@key@) {
    for (; list != NULL; list = list->next)
        if (strcmp(list->@key@, @key@) == 0)
            return list;
    return NULL;
}""", """void reverse(char *@key@, size_t @count@) {
    for (size_t i = 0, j = @count@; i + 1 < j; i++) {
        char c = @key@[i];
        @key@[i] = @key@[--j];
        @key@[j] = c;
    }
}"""]
PYTHON = ["""import csv
import sys
from collections import defaultdict


def total_by_@key@(path):
    \"\"\"Sum of the column @count@ for each @key@.\"\"\"
    totals = defaultdict(float)
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            totals[row["@key@"]] += float(row["@count@"])
    return dict(totals)


if __name__ == "__main__":
    for name, value in sorted(total_by_@key@(sys.argv[1]).items()):
        print(f"{name:<20} {value:10.2f}")""", """class Stack:
    def __init__(self):
        self._@things@ = []

    def push(self, @key@):
        self._@things@.append(@key@)

    def pop(self):
        if not self._@things@:
            raise IndexError("pop from an empty stack")
        return self._@things@.pop()

    def __len__(self):
        return len(self._@things@)""", """def test_@key@_is_sorted():
    @things@ = [3, 1, 2]
    assert sorted(@things@) == [1, 2, 3]
    assert max(@things@) - min(@things@) == 2


@@cached
def fibonacci(@count@: int) -> int:
    return @count@ if @count@ < 2 else fibonacci(@count@ - 1) + fibonacci(@count@ - 2)"""]
SHELL = ["""#!/bin/sh
set -eu
@key@=${1:?usage: backup FOLDER}
target="/backup/$(date +%Y-%m-%d)"
mkdir -p "$target"
find "$@key@" -name '*.@things@' -newer /backup/last -print0 | xargs -0 cp -t "$target"
touch /backup/last
echo "$(ls "$target" | wc -l) files in $target\"""", """for @key@ in *.log; do
    if grep -q ERROR "$@key@"; then
        echo "$@key@: $(grep -c ERROR "$@key@") errors"
        gzip -9 "$@key@"
    fi
done"""]
OTHERS = ["""SELECT c.name, COUNT(*) AS @count@, SUM(o.price * o.pieces) AS total
FROM orders AS o
JOIN customers AS c ON c.id = o.customer_id
WHERE o.article = '@things@' AND o.date >= '2024-01-01'
GROUP BY c.name
HAVING COUNT(*) > 1
ORDER BY total DESC
LIMIT 10;""", """async function load@key@(url) {
  const response = await fetch(url, { headers: { Accept: "application/json" } });
  if (!response.ok) throw new Error(`${response.status} ${response.statusText}`);
  const { @things@ = [] } = await response.json();
  return @things@.filter((one) => one.@count@ > 0).map((one) => one.name);
}""", """<!doctype html>
<html lang="en">
  <head>
    <meta charset="utf-8">
    <title>Our @things@</title>
    <link rel="stylesheet" href="style.css">
  </head>
  <body>
    <h1>Our @things@</h1>
    <ul class="@key@">
      <li><a href="/@things@/1">The first</a></li>
      <li><a href="/@things@/2">The second</a></li>
    </ul>
    <form method="post"><input name="@count@" type="number" min="0"><button>Send</button></form>
  </body>
</html>""", """## Usage

    tool --@key@ FILE [--@count@ N]

| option | default | what it does |
|---|---|---|
| `--@key@` | none | the file of @things@ |
| `--@count@` | 10 | how many are shown |

See *Installation* above. Bugs go to the [tracker](https://example.org/issues).""", """[@key@]
@count@ = 8080
hosts = ["localhost", "@things@.example.org"]
verbose = false

[@key@.limits]
memory = "512M"
timeout = 30"""]


def snippets(r):
    pieces = []
    for form in (C + PYTHON + SHELL + OTHERS) * 2:
        text = form.replace("@@cached", "@functools.cache")
        names = {"key": ["key", "city", "user", "word", "path", "color"],
                 "count": ["count", "n", "size", "port"],
                 "things": THINGS, "mean": ["mean", "average"]}
        for name, choices in names.items():
            text = text.replace(f"@{name}@", r.choice(choices))
        pieces.append(text)
    return r.sample(pieces, len(pieces))
