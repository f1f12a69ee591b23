#!/usr/bin/env bash
# Runs DiLAP, the baselines and HALP at the same measured latencies, and publishes the records below leaderboards/.
# Takes hours on two cores. Cells that are recorded already, in the runs folder or in leaderboards/results/dilap, are not
# run again. Two copies of this script may run different parts at the same time, because CPU time is ranked.
# Arguments: the parts to run. They are none (without recovery; one budget of it: none-0.65x, none-0.8x, none-0.5x),
# least-squares, lora, ablations, decode and publish. Without arguments all parts run.
set -euo pipefail
cd "$(dirname "$0")/.."
export HARNESS_RUNS=${HARNESS_RUNS:-runs/dilap}

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
published=leaderboards/results/dilap records=$HARNESS_RUNS/records samples=$HARNESS_RUNS/samples
mkdir -p "$records" "$samples" $published/samples
cp -n $published/*.json "$records"/ 2>/dev/null || true
cp -n $published/samples/* "$samples"/ 2>/dev/null || true
device=cpu workload=prefill:1x512
# Runs one cell. Arguments: budget, recovery, seed, pruner and its settings.
cell() {
    local budget=$1 recovery=$2 seed=$3
    shift 3
    local request=(run --pruner "$@" --model smollm2-135m --device "$device" --workload "$workload" --latency "$budget"
        --recovery "$recovery" --seed "$seed" --calibration c4 --eval wikitext2,c4 --limit 40)
    if uv run --no-sync harness "${request[@]}" --dry-run --json | uv run --no-sync python benchmarks/recorded.py "$records"; then
        return
    fi
    uv run --no-sync harness "${request[@]}" || {
        local code=$? # a failed cell is a row of the table; stop only after Ctrl-C (130) or an environment fault (3)
        echo "ended with $code: $* at $budget, $recovery" >&2
        [ $code != 130 ] && [ $code != 3 ] || exit $code
    }
}

dilap=(dilap --set samples=96 --set held_out=12 --set steps=90 --set lr=0.02 --set swaps=40) # a longer search than the preset quick
text=(--set samples=96 --set length=192) # 18,432 calibration tokens, the same for all methods that read text
# Runs the methods that do not change the weights. Arguments: budget, recovery.
others() {
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

# Each model's final weights are trained on 38,400 tokens. Recovery uses windows of 128 tokens, of which one in 16 only
# validates. Tokens that the pruning itself trains on are included: 16,384 for loraprune, 32,768 for compresso and 14,592
# for llm-streamline.
lora() {
    others 0.8x lora:samples=320
    cell 0.8x lora:samples=320 0 "${dilap[@]}"
    cell 0.8x lora:samples=183 0 loraprune
    cell 0.8x lora:samples=46 0 compresso --set samples=256 --set lora_epochs=0 --set prune_epochs=2 \
        --set ramp_epochs=1 --set tune_epochs=0
    cell 0.8x lora:samples=198 0 llm-streamline "${text[@]}" --set train_samples=85 --set epochs=1
}

# Variants of the quick search, each with one part changed. Those whose effect is smaller than the noise of a CPU, and the
# one that is guided by FLOPs instead of latency, run on the simulated device `staircase`.
ablations() {
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

# Publishes the records that `harness publish` accepts, even if it refuses others, and remakes the pages.
publish() {
    uv run --no-sync harness publish dilap || true
    uv run --no-sync harness leaderboard leaderboards
    uv run --no-sync python -m harness.leaderboard.readme
}

uv run --no-sync harness profile --device cpu --model smollm2-135m --workload prefill:1x512 >&2
for part in "${@:-none least-squares lora ablations decode publish}"; do
    for name in $part; do $name; done
done
