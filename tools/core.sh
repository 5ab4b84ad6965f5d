#!/bin/sh
# What there is to read: each row of the README's reading order in lines and minutes, beside what
# the README says, then the lines of every floor, those of the reading order (the core) and the
# rest. Code is read at 18 lines a minute; of the mathematics, 4 words are a line. Fails where a
# file is not there.
set -u
cd "$(dirname "$0")/.." || exit 1
list=$(mktemp) || exit 1
trap 'rm -f "$list" "$list.rows"' EXIT
missing=0

lines_of() {
    case $1 in
    *.md) echo $(($(wc -w < "$1") / 4)) ;;
    *) wc -l < "$1" ;;
    esac
}

# A row of the reading order begins with its minutes; its files stand in backticks in the second
# cell: a name alone is in the folder of the one before, `.cpp` has its name too.
sed -n '/^## Reading order/,/^## /p' README.md | grep -E '^\| [0-9]+ \|' > "$list.rows"
echo "lines  minutes  README  files"
while IFS='|' read -r _ stated files _; do
    lines=0 names="" file=""
    for name in $(echo "$files" | grep -o '`[^`]*`' | tr -d '`'); do
        case $name in
        .*) file=${file%.*}$name ;;
        */*) file=$name ;;
        *) file=${file%/*}/$name ;;
        esac
        if [ ! -f "$file" ]; then
            echo "core: the README's reading order names $file, which is not there" >&2
            missing=1
            continue
        fi
        echo "$file" >> "$list"
        lines=$((lines + $(lines_of "$file"))) names="$names $file"
    done
    minutes=$(((lines + 45) / 90 * 5))
    printf '%5d %8d %7d %s\n' $lines $((minutes > 5 ? minutes : 5)) $stated "$names"
done < "$list.rows"
awk -F'|' '{ sum += $2 } END { printf "the README says %d minutes in all\n", sum }' "$list.rows"

echo
echo " core   rest  floor"
for floor in src/base src/formats src/model src/backend src/cache src/forward src/calibrate \
             src/commands cuda tests tools; do
    core=0 all=0
    for file in $(find $floor -type f \( -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o \
                  -name '*.cuh' -o -name '*.inc' -o -name '*.sh' -o -name '*.py' \)); do
        lines=$(wc -l < "$file")
        all=$((all + lines))
        if grep -qx "$file" "$list"; then core=$((core + lines)); fi
    done
    printf '%5d %6d  %s\n' $core $((all - core)) $floor
done | awk '{ print; core += $1; rest += $2 } END { printf "%5d %6d  in all\n", core, rest }'
exit $missing
