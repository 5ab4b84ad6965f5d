#!/bin/sh
# The table of mixed bits: KL divergence at some sizes, first 4 tokens whole and no others. Learns
# from one text at each size and measures on windows of 512 of others:
#   tools/mixed_bits.sh STIEF MODEL LEARN.txt MEASURE.txt "4 3 2.5 2" [OTHER.txt]
# OTHER.txt is measured with the same bases. Bases and the JSON of every run go to build/bits.
set -eu
[ $# -ge 5 ] || { sed -n '4s/^# */usage: /p' "$0" >&2; exit 2; }
stief=$1 model=$2 learn=$3 measure=$4 sizes=$5 other=${6:-}
out=build/bits
mkdir -p $out
number() { grep -o "\"$1\": [0-9.e+-]*" $out/$2.json | $3 -n 1 | sed 's/.*: //'; }
short() { LC_ALL=C awk -v x="$(number "$@")" 'BEGIN { printf "%#.3g", x }'; }

head="| bits an element | predicted | KL divergence | perplexity | full cache | time |"
line="|---|---|---|---|---|---|"
[ -z "$other" ] || head="$head on $(basename "$other") |" line="$line---|"
printf '%s\n%s\n' "$head" "$line"
for bits in $sizes; do
    keep=$(LC_ALL=C awk -v b="$bits" 'BEGIN { print b / 16 }')
    "$stief" calibrate "$model" "$learn" -o $out/$bits.bases --holdout "$measure" --keep "$keep" \
        --window 4,0 --context 512 --json --quiet > $out/$bits.json
    row="| $(short bits_per_element $bits head) | $(short kld_predicted $bits head) |"
    row="$row $(short kld_mean $bits tail) | $(short perplexity $bits tail) |"
    row="$row $(short perplexity_full $bits tail) | $(number seconds $bits tail | cut -d. -f1) s |"
    if [ -n "$other" ]; then
        "$stief" perplexity "$model" "$other" --bases $out/$bits.bases --context 512 --chunks 16 \
            --json --quiet > $out/$bits.other.json
        row="$row $(short kld_mean $bits.other tail) |"
    fi
    echo "$row"
done
