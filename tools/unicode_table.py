#!/usr/bin/env python3
"""Writes the two tables of Unicode 16.0 that the sources include.

    pip install unicodedata2==16.0.0
    tools/unicode_table.py classes > src/formats/unicode_table.inc        ranges of \\p{L}, \\p{N}, \\s
    tools/unicode_table.py widths > src/commands/char_width_table.inc     characters not of one column

16.0 because a tokenizer must split as the one that models are used with: Hugging Face's tokenizers
0.23.3 carries an Oniguruma with exactly these classes (it was asked about every code point).
"""
import sys

try:
    import unicodedata2 as unicodedata
except ImportError:
    sys.exit("unicode_table.py: needs unicodedata2: pip install unicodedata2==16.0.0")

VERSION = "16.0.0"
COLUMNS = 100

# The property White_Space (PropList.txt): \s is no general category.
WHITE_SPACE = {*range(0x09, 0x0E), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B),
               0x2028, 0x2029, 0x202F, 0x205F, 0x3000}

# Format characters that show: the soft hyphen, and Prepended_Concatenation_Mark (PropList.txt),
# signs that enclose the digits after them.
SHOWN_FORMATS = {0xAD, *range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD}

# Vowels and final consonants of Hangul, drawn into the block that the leading consonant begins.
JOINING_JAMO = {*range(0x1160, 0x1200), *range(0xD7B0, 0xD7C7), *range(0xD7CB, 0xD7FC)}


def letter_class(code):
    if code in WHITE_SPACE:
        return "S"
    category = unicodedata.category(chr(code))[0]
    return category if category in "LN" else None


# Nonspacing and enclosing marks and formats take no column, what East_Asian_Width calls wide or
# fullwidth (all emoji that are drawn as such among them) two. None: one column.
def width(code):
    category = unicodedata.category(chr(code))
    if code in JOINING_JAMO or category in ("Mn", "Me"):
        return 0
    if category == "Cf" and code not in SHOWN_FORMATS or category in ("Zl", "Zp"):
        return 0
    return 2 if unicodedata.east_asian_width(chr(code)) in "WF" else None


def ranges(kind):
    first, current = 0, None
    for code in range(0x110001):
        found = kind(code) if code < 0x110000 else None
        if found != current:
            if current is not None:
                yield first, code - 1, current
            first, current = code, found


def main():
    kinds = {"classes": (letter_class, "class"), "widths": (width, "columns")}
    if len(sys.argv) != 2 or sys.argv[1] not in kinds:
        sys.exit("usage: unicode_table.py classes|widths")
    if unicodedata.unidata_version != VERSION:
        sys.exit(f"unicode_table.py: this is Unicode {unicodedata.unidata_version}, "
                 f"expected {VERSION}: pip install unicodedata2=={VERSION}")
    kind, name = kinds[sys.argv[1]]
    print(f"// Unicode {VERSION}: first, last, {name}. Written by tools/unicode_table.py.")
    line = ""
    for first, last, value in ranges(kind):
        entry = f"{{0x{first:x}, 0x{last:x}, {value}}},"
        if len(line) + 1 + len(entry) > COLUMNS:
            print(line)
            line = entry
        else:
            line += (" " if line else "") + entry
    print(line)


main()
