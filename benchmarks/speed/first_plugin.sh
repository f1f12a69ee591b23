#!/usr/bin/env bash
# Times the four commands that create, install, check and run a new plug-in. Nothing is edited by hand.
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
