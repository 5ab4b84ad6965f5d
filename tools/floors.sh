#!/bin/sh
# Includes point downwards only:
#   base → formats → model → backend → cache → forward → calibrate → commands
# and no line is wider than 110 columns. Fails with the lines that are otherwise.
set -u
cd "$(dirname "$0")/.." || exit 1
status=0
below=""
for floor in base formats model backend cache forward calibrate commands; do
    below="$below $floor"
    [ -d "src/$floor" ] || continue
    allowed=$(echo $below | tr ' ' '|')
    if grep -rnE '^#include "' "src/$floor" | grep -vE "#include \"($allowed)/"; then
        echo "floors: src/$floor may include only: $below" >&2
        status=1
    fi
done
[ $status = 0 ] && echo "floors: every include points downwards"

# A column is a character: all bytes of one in UTF-8 but its first are \200 to \277.
wide=$(find Makefile src cuda tests tools -type f \( -name Makefile -o -name '*.cpp' -o -name '*.h' \
    -o -name '*.cu' -o -name '*.cuh' -o -name '*.inc' -o -name '*.sh' -o -name '*.py' \) \
    -exec env LC_ALL=C awk '{
        line = $0
        gsub(/[\200-\277]/, "", line)
        if (length(line) > 110) print FILENAME ":" FNR ": " length(line) " columns"
    }' {} +)
if [ -n "$wide" ]; then
    echo "$wide"
    echo "floors: lines are at most 110 columns wide" >&2
    status=1
fi
exit $status
