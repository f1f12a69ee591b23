#!/usr/bin/env bash
# Runs the baselines, random and dense on one small model, and publishes the records below leaderboards/.
# Takes about an hour on two cores. Cells that are done already are not run again.
set -euo pipefail
cd "$(dirname "$0")/.."
export HARNESS_RUNS=${HARNESS_RUNS:-runs/baselines}

for pruner in dense random magnitude wanda wanda-sp llm-pruner loraprune shortgpt llm-streamline compresso; do
    budget=(--ratio 0.2)
    [[ $pruner == dense ]] && budget=()
    uv run --no-sync harness run --pruner "$pruner" --model smollm2-135m "${budget[@]}" --limit 50
done
for recovery in least-squares lora; do
    uv run --no-sync harness run --pruner wanda-sp --model smollm2-135m --ratio 0.2 --limit 50 --recovery "$recovery"
done
uv run --no-sync harness publish baselines
uv run --no-sync harness leaderboard leaderboards
