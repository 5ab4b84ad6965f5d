#!/bin/sh
# Includes point downwards only:
#   base → formats → model → backend → cache → forward → calibrate → commands
# Fails with the line that points upwards.
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
exit $status
