#!/bin/sh
# All that a GPU is asked, in one command, minutes each: the tests on it, compute-sanitizer over what
# writes and reads caches, and the table of tools/measurements.md (random weights and bases):
#   tools/gpu.sh BIN OUT [tests] [sanitize] [bench]
# BIN has run_tests, stief, random_checkpoint and random_bases; logs go to OUT. LAYERS=8 takes 8 of
# 8B's 32, DEPTHS, RISK_DEPTHS, SHAPES="8B 1B", CACHES, JOBS; BACKEND=cpu tries the script itself.
set -eu
[ $# -ge 2 ] || { sed -n '4s/^# */usage: /p' "$0" >&2; exit 2; }
bin=$1 out=$2
shift 2
[ $# -gt 0 ] || set -- tests sanitize bench
backend=${BACKEND:-cuda} jobs=${JOBS:-$(nproc)}
depths=${DEPTHS:-0,4096,32768,131072} shapes=${SHAPES:-8B 1B}
caches=${CACHES:-full q8 post pre joint} risk_depths=${RISK_DEPTHS:-0,4096,32768}
mkdir -p "$out"
failed=0

# name, command: its output into a log, its last line here
step() {
    name=$1
    shift
    if "$@" > "$out/$name.log" 2>&1; then state=ok; else state=FAILED failed=1; fi
    echo "$name: $state, $(tail -n 1 "$out/$name.log")"
}

tests() {
    only=--gpu=only
    [ "$backend" = cuda ] || only=
    step tests "$bin/run_tests" $only --jobs="$jobs"
}

watched='attention|append|cache|codes|rows|row met|window|matmul|product|gated|argmax|merge|singly'
watched="$watched|turns pairs"
# A process for each case: one at a time takes an hour. A comma parts filters; ? is any character.
sanitize() {
    "$bin/run_tests" -ltc -ts=backend,cache,forward |
        sed -e '/^\[doctest\]/d' -e '/^=/d' -e 's/^ *//' |
        grep -E "$watched" |
        tr ',' '?' > "$out/cases"
    for tool in memcheck racecheck; do
        step $tool xargs -a "$out/cases" -d '\n' -P "$jobs" -I{} timeout 120 compute-sanitizer \
            --tool $tool --error-exitcode 1 "$bin/run_tests" --gpu=only -tc={}
        grep -c 'ERROR SUMMARY: 0 errors' "$out/$tool.log" | sed "s/^/    clean: /"
    done
}

# hidden, intermediate, heads, layers, tied
config() {
    cat << JSON
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256,
 "hidden_size": $1, "intermediate_size": $2, "num_attention_heads": $3, "num_key_value_heads": 8,
 "num_hidden_layers": $4, "tie_word_embeddings": $5, "max_position_embeddings": 140000,
 "rope_theta": 500000.0, "rms_norm_eps": 1e-05, "hidden_act": "silu", "torch_dtype": "bfloat16",
 "bos_token_id": 128000, "eos_token_id": 128001}
JSON
}

bench() {
    for shape in $shapes; do
        case $shape in
        8B) config 4096 14336 32 "${LAYERS:-32}" false ;;
        1B) config 2048 8192 32 16 true ;;
        tiny) config 256 512 8 2 true ;;
        esac > "$out/$shape.json"
        model=$out/$shape
        [ -d "$model" ] || "$bin/random_checkpoint" "$out/$shape.json" "$model"
        for cache in $caches; do
            case $cache in
            full) with= ;;
            q8) with="--cache q8" ;;
            *) with="--bases $out/$shape.$cache.bases" ways="--keys $cache"
                [ $cache = joint ] && ways="--keys post --values joint"
                [ -f "$out/$shape.$cache.bases" ] || "$bin/random_bases" "$model" \
                    "$out/$shape.$cache.bases" --bits 2.25 $ways > /dev/null ;;
            esac
            step $shape.$cache "$bin/stief" bench "$model" --backend "$backend" $with \
                --prompt "${PROMPT:-2048}" --generate 32 --context $((${depths##*,} + 128)) \
                --depth "$depths" --repeat 2
            sed 's/^/    /' "$out/$shape.$cache.log"
        done
        for risk in audit exact; do
            step $shape.$risk "$bin/stief" bench "$model" --backend "$backend" --cache q4 --risk $risk \
                --prompt "${PROMPT:-2048}" --generate 32 --depth "$risk_depths" --repeat 2
            sed 's/^/    /' "$out/$shape.$risk.log"
        done
    done
}

for part in "$@"; do
    case $part in
    tests | sanitize | bench) $part ;;
    *) echo "error: tools/gpu.sh: no part '$part': tests, sanitize or bench" >&2; exit 2 ;;
    esac
done
exit $failed
