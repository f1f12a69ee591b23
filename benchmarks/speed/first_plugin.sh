#!/usr/bin/env bash
# From nothing to a plug-in of one's own, checked and run: four commands, no edits, and the seconds each took.
set -euo pipefail
folder=$(mktemp -d)
trap 'uv pip uninstall --quiet prune-harness-foo; rm -rf "$folder"' EXIT
cd "$folder"

step() {
    local start=$SECONDS
    "$@" >"$folder/out" 2>&1 || { cat "$folder/out"; exit 1; }
    echo "$((SECONDS - start)) s  $*"
}

start=$SECONDS
step harness new pruner foo
step uv pip install --quiet -e foo
step harness check foo
step harness run --pruner foo --model tiny
echo "$((SECONDS - start)) s in all"
