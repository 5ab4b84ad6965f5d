#!/usr/bin/env python3
"""Writes src/formats/unicode_table.inc: the ranges of \\p{L}, \\p{N} and \\s in Unicode 16.0.

    pip install unicodedata2==16.0.0
    tools/unicode_table.py > src/formats/unicode_table.inc

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


def kind(code):
    if code in WHITE_SPACE:
        return "S"
    category = unicodedata.category(chr(code))[0]
    return category if category in "LN" else None


def ranges():
    first, current = 0, None
    for code in range(0x110001):
        found = kind(code) if code < 0x110000 else None
        if found != current:
            if current:
                yield first, code - 1, current
            first, current = code, found


def main():
    if unicodedata.unidata_version != VERSION:
        sys.exit(f"unicode_table.py: this is Unicode {unicodedata.unidata_version}, "
                 f"expected {VERSION}: pip install unicodedata2=={VERSION}")
    print(f"// Unicode {VERSION}: first, last, class. Written by tools/unicode_table.py.")
    line = ""
    for first, last, letter in ranges():
        entry = f"{{0x{first:x}, 0x{last:x}, {letter}}},"
        if len(line) + 1 + len(entry) > COLUMNS:
            print(line)
            line = entry
        else:
            line += (" " if line else "") + entry
    print(line)


main()
