#!/bin/sh
# The tables of the README: what each method's bases cost at equal bytes, on text that none of them
# learned from. Needs a text to learn from and one to measure on (English novels, for parlour):
#   tools/tables.sh STIEF MODEL LEARN.txt MEASURE.txt
# Writes the bases and the JSON of every run into build/tables, and the tables to standard output.
set -eu
[ $# = 4 ] || { echo "usage: tools/tables.sh STIEF MODEL LEARN.txt MEASURE.txt" >&2; exit 2; }
stief=$1 model=$2 learn=$3 measure=$4
out=build/tables
mkdir -p $out
if [ ! -f "$learn" ] && [ -f "$learn.xz" ]; then
    xz -dc "$learn.xz" > "$out/learn.txt"
    learn=$out/learn.txt
fi

# name, options: one calibration each; its JSON holds every size without an exact window.
row() {
    name=$1
    shift
    "$stief" calibrate "$model" "$learn" -o "$out/$name.bases" --holdout "$measure" --keep 0.25 \
        --report "$out/$name.html" --json "$@" > "$out/$name.json"
    "$stief" perplexity "$model" "$measure" --context 512 --chunks 40 --json --quiet \
        --bases "$out/$name.bases" > "$out/$name.window.json"
}

# key, file, n: the n-th number after "key" in a JSON file
number() { grep -o "\"$1\": [0-9.e+-]*" "$2" | sed -n "$3s/.*: //p"; }

row eigen --method eigen
row eigen-greedy --method stiefel --steps 0 --key-basis layer --metric identity
row stiefel-space --method stiefel --key-basis layer --metric identity
row stief

echo "| bases | KL at 1/4 | ppl | KL at 1/2 | ppl | KL at 1/4, window 4,64 | ppl | seconds |"
echo "|---|---|---|---|---|---|---|---|"
for name in eigen eigen-greedy stiefel-space stief; do
    j=$out/$name.json w=$out/$name.window.json
    # "sizes" are 1/8, 1/4, 3/8, 1/2 and 3/4; the measured cache's own figures come after them.
    echo "| $name | $(number kld_mean $j 2) | $(number perplexity $j 2) | $(number kld_mean $j 4) |" \
        "$(number perplexity $j 4) | $(number kld_mean $w 1) | $(number perplexity $w 1) |" \
        "$(number seconds $j 1) |"
done
echo
echo "full cache: perplexity $(number perplexity_full $out/stief.json 1) (calibrate's windows)," \
    "$(number perplexity_full $out/stief.window.json 1) (40 windows of 512)"
echo
echo "layer error, eigenbases against learned, $model: see errors_at_rank in $out/stief.json"
