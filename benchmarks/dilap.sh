#!/usr/bin/env bash
# DiLAP beside the baselines and HALP at the same measured latencies, published below leaderboards/.
# Takes hours on two cores; what is recorded already, here or in leaderboards/results/dilap, is not done again. Two such
# scripts of different parts may run at a time: CPU time is ranked. Parts: none (also as none-0.65x …), least-squares,
# lora, ablations, decode, publish; all of them if none is named.
set -euo pipefail
cd "$(dirname "$0")/.."
export HARNESS_RUNS=${HARNESS_RUNS:-runs/dilap}

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
published=leaderboards/results/dilap records=$HARNESS_RUNS/records samples=$HARNESS_RUNS/samples
mkdir -p "$records" "$samples" $published/samples
cp -n $published/*.json "$records"/ 2>/dev/null || true
cp -n $published/samples/* "$samples"/ 2>/dev/null || true
device=cpu workload=prefill:1x512
cell() { # budget, recovery, seed, pruner and its settings
    local budget=$1 recovery=$2 seed=$3
    shift 3
    local asked=(run --pruner "$@" --model smollm2-135m --device "$device" --workload "$workload" --latency "$budget"
        --recovery "$recovery" --seed "$seed" --calibration c4 --eval wikitext2,c4 --limit 40)
    if uv run --no-sync harness "${asked[@]}" --dry-run --json | uv run --no-sync python benchmarks/recorded.py "$records"; then
        return
    fi
    uv run --no-sync harness "${asked[@]}" || {
        local code=$? # a cell that fails is a line of the table; Ctrl-C and an environment at fault end it all
        echo "ended with $code: $* at $budget, $recovery" >&2
        [ $code != 130 ] && [ $code != 3 ] || exit $code
    }
}

dilap=(dilap --set samples=96 --set held_out=12 --set steps=90 --set lr=0.02 --set swaps=40) # longer than quick
text=(--set samples=96 --set length=192) # 18,432 tokens, the same for all that take them
others() { # budget, recovery: methods that leave the weights as they are
    cell "$1" "$2" 0 magnitude
    cell "$1" "$2" 0 wanda-sp "${text[@]}"
    cell "$1" "$2" 0 llm-pruner "${text[@]}"
    cell "$1" "$2" 0 shortgpt "${text[@]}"
    cell "$1" "$2" 0 llm-streamline "${text[@]}" --set network=none
    for halp in halp halp-mckp; do
        cell "$1" "$2" 0 $halp --set batches=10 --set length=192
    done
}

none() { for budget in 0.65x 0.8x 0.5x; do none-at $budget; done; }
none-at() {
    for seed in 0 1 2; do cell $1 none $seed "${dilap[@]}"; done
    others $1 none
}
none-0.65x() { none-at 0.65x; }
none-0.8x() { none-at 0.8x; }
none-0.5x() { none-at 0.5x; }

least-squares() {
    local recovery=least-squares:samples=72:length=256
    others 0.65x $recovery
    cell 0.65x $recovery 0 "${dilap[@]}"
    cell 0.65x $recovery 0 "${dilap[@]}" --set inner=least-squares
}

# 38,400 tokens train each model's final weights: windows of 128, one in 16 of them only validates, and what the pruning
# itself trained on counts in (16,384, 32,768 and 14,592)
lora() {
    others 0.8x lora:samples=320
    cell 0.8x lora:samples=320 0 "${dilap[@]}"
    cell 0.8x lora:samples=183 0 loraprune
    cell 0.8x lora:samples=46 0 compresso --set samples=256 --set lora_epochs=0 --set prune_epochs=2 \
        --set ramp_epochs=1 --set tune_epochs=0
    cell 0.8x lora:samples=198 0 llm-streamline "${text[@]}" --set train_samples=85 --set epochs=1
}

ablations() { # of the quick search, each leaves one thing out; on `staircase` what noise would hide, and FLOPs for latency
    cell 0.65x none 0 dilap
    for change in guide=sites depth=False projection=round swaps=0; do cell 0.65x none 0 dilap --set $change; done
    local device=staircase
    cell 0.65x none 0 dilap
    for change in guide=flops order=taylor order=activation inner=lora; do cell 0.65x none 0 dilap --set $change; done
}

decode() {
    local workload=decode:1x512
    for pruner in shortgpt dilap; do cell 0.65x none 0 $pruner "${text[@]}"; done
    cell 0.65x none 0 llm-streamline "${text[@]}" --set network=none
}

publish() { # refused is what others could not rely on; the pages show the rest
    uv run --no-sync harness publish dilap || true
    uv run --no-sync harness leaderboard leaderboards
    uv run --no-sync python -m harness.leaderboard.readme
}

uv run --no-sync harness profile --device cpu --model smollm2-135m --workload prefill:1x512 >&2
for part in "${@:-none least-squares lora ablations decode publish}"; do
    for name in $part; do $name; done
done
