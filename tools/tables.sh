#!/bin/sh
# The tables of tools/measurements.md about the low-rank cache. Learns bases from one text, measures
# them on texts that none learned from (English novels, for parlour), and prints one table a part:
#   tools/tables.sh STIEF MODEL LEARN.txt MEASURE.txt [WIKITEXT.txt [C4.jsonl.gz]]
# LEARN.txt may be there as LEARN.txt.xz. Bases and the JSON of every run go to build/tables.
set -eu
[ $# -ge 4 ] || { sed -n '4s/^# */usage: /p' "$0" >&2; exit 2; }
stief=$1 model=$2 learn=$3 measure=$4 wikitext=${5:-} c4=${6:-}
out=build/tables
mkdir -p $out
if [ ! -f "$learn" ] && [ -f "$learn.xz" ]; then
    xz -dc "$learn.xz" > $out/learn.txt
    learn=$out/learn.txt
fi

# name, text to learn from, text to measure on, options: one calibration at a quarter of the bytes.
# Its JSON holds every size without a whole window, all from one descent.
learn_bases() {
    name=$1 from=$2 on=$3
    shift 3
    "$stief" calibrate "$model" "$from" -o $out/$name.bases --holdout "$on" --objective layer \
        --keep 0.25 \
        --report $out/$name.html --json "$@" > $out/$name.json
}

# bases, text, context, windows, name of the JSON: through the cache with its whole window
measure_bases() {
    "$stief" perplexity "$model" "$2" --context $3 --chunks $4 --json --quiet \
        --bases $out/$1.bases > $out/$5.json
}

# key, file, n: the n-th number after "key" in a JSON file; $: the last of them
number() { grep -o "\"$1\": [0-9.e+-]*" $out/$2.json | sed -n "$3s/.*: //p"; }
short() { LC_ALL=C awk -v x="$(number "$@")" 'BEGIN { printf "%#.3g", x }'; }
two() { LC_ALL=C awk -v x="$(number "$@")" 'BEGIN { printf "%.2f", x }'; }

title() {
    case $1 in
    eigen) echo "EigenAttention, its own thresholds (\`--method eigen\`)" ;;
    eigen-greedy) echo "EigenAttention's bases, our allocation (\`--steps 0 --key-basis layer" \
        "--metric identity\`)" ;;
    stiefel-space) echo "StiefAttention's space (\`--key-basis layer --metric identity\`)" ;;
    stief) echo "**descent, rank alone** (\`--objective layer\`)" ;;
    post) echo "descent, keys after rotation (\`--keys post\`)" ;;
    auto) echo "descent, the layer's better keys (\`--keys auto\`)" ;;
    wikitext-eigen) echo "learned on WikiText-2: EigenAttention, its own thresholds" ;;
    wikitext) echo "learned on WikiText-2: descent" ;;
    esac
}

equal_bytes() {
    echo "| bases | KL at 1/8 | 1/4 | 3/8 | 1/2 | 3/4 | perplexity at 1/4 | at 1/2 |" \
        "KL at 1/4, window 4,64 | perplexity | time |"
    echo "|---|---|---|---|---|---|---|---|---|---|---|"
    for name in eigen eigen-greedy stiefel-space stief post auto; do
        measure_bases $name "$measure" 512 40 $name.window
        row="| $(title $name) |"
        for size in 1 2 3 4 5; do row="$row $(short kld_mean $name $size) |"; done
        echo "$row $(two perplexity $name 2) | $(two perplexity $name 4) |" \
            "$(short kld_mean $name.window 1) | $(two perplexity $name.window 1) |" \
            "$(number seconds $name 1 | cut -d. -f1) s |"
    done
    echo "| full cache | 0 | 0 | 0 | 0 | 0 | $(two perplexity_full stief 1) |" \
        "$(two perplexity_full stief 1) | 0 | $(two perplexity_full stief.window 1) | |"
}

# Every head at one rank; "warm": the eigenbases of the same metric.
layer_errors() {
    layers=$(grep -o '"warm"' $out/stief.json | wc -l)
    head="| layer |" line="|---|" quarter="| rank d/4 |" half="| rank d/2 |"
    for n in $(seq 1 2 $((layers - 1))); do
        head="$head $((n / 2)) |" line="$line---|"
        quarter="$quarter $(short warm stief $n) → $(short learned stief $n) |"
        half="$half $(short warm stief $((n + 1))) → $(short learned stief $((n + 1))) |"
    done
    printf '%s\n' "$head" "$line" "$quarter" "$half"
}

# A text that is unlike what the novels' bases learned from, and the other way round.
other_texts() {
    lines=$(wc -l < "$wikitext")
    head -n $((lines / 2)) "$wikitext" > $out/wikitext-first.txt
    tail -n +$((lines / 2 + 1)) "$wikitext" > $out/wikitext-second.txt
    texts=wikitext-second
    if [ -f "$c4" ]; then
        texts="$texts c4"
        gzip -dc "$c4" | sed -e 's/^.*"text": *"//' -e 's/"\(, *"[a-z_]*": *"[^"]*"\)*}$//' \
            -e 's/\\n/\n/g' -e 's/\\t/\t/g' -e 's/\\"/"/g' -e 's/\\\\/\\/g' > $out/c4.txt
    else
        echo "(C4 is left out: no file '$c4')"
    fi
    learn_bases wikitext-eigen $out/wikitext-first.txt $out/wikitext-second.txt --method eigen
    learn_bases wikitext $out/wikitext-first.txt $out/wikitext-second.txt
    echo "| bases | text | KL | perplexity | full cache |"
    echo "|---|---|---|---|---|"
    for text in $texts; do
        for name in eigen stiefel-space stief wikitext-eigen wikitext; do
            measure_bases $name $out/$text.txt 512 40 $name.$text
            echo "| $(title $name) | $text | $(short kld_mean $name.$text 1) |" \
                "$(two perplexity $name.$text 1) | $(two perplexity_full $name.$text 1) |"
        done
    done
}

# Four times the positions that the bases were learned on.
longer_context() {
    echo "| bases, learned at 512 | KL at context 512 | at 2048 | perplexity at 2048 |"
    echo "|---|---|---|---|"
    for name in eigen stief post; do
        measure_bases $name "$measure" 2048 10 $name.long
        echo "| $(title $name) | $(short kld_mean $name.window 1) |" \
            "$(short kld_mean $name.long 1) | $(two perplexity $name.long 1) |"
    done
    echo "| full cache | 0 | 0 | $(two perplexity_full stief.long 1) |"
}

smallest_cache() {
    "$stief" calibrate "$model" "$learn" -o $out/budget.bases --holdout "$measure" \
        --objective layer --ppl-budget 1% --json > $out/budget.json
    # other sizes and methods come first; kld_mean is there once more, by text
    echo "keep $(short keep budget 1), perplexity $(two perplexity budget '$') against" \
        "$(two perplexity_full budget 1), KL divergence $(short kld_mean budget '$')," \
        "$(number seconds budget 1 | cut -d. -f1) s"
}

learn_bases eigen "$learn" "$measure" --method eigen
learn_bases eigen-greedy "$learn" "$measure" --steps 0 --key-basis layer --metric identity
learn_bases stiefel-space "$learn" "$measure" --key-basis layer --metric identity
learn_bases stief "$learn" "$measure"
learn_bases post "$learn" "$measure" --keys post
learn_bases auto "$learn" "$measure" --keys auto

printf '\nEqual bytes\n\n' && equal_bytes
printf '\nLayer output error, eigenbases to learned bases\n\n' && layer_errors
if [ -f "$wikitext" ]; then
    printf '\nOther texts, a quarter of the bytes, window 4,64\n\n' && other_texts
else
    printf "\n(other texts are left out: no file '%s')\n" "$wikitext"
fi
printf '\nA longer context, a quarter of the bytes, window 4,64\n\n' && longer_context
printf '\nThe smallest cache within 1%% of the perplexity, window 4,64\n\n' && smallest_cache
