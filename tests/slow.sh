#!/usr/bin/env bash
# Runs all slow tests, one file after another, and prints a table: passed, failed, skipped and minutes of each file.
# Hours on two cores. `bash tests/slow.sh tests/faults` runs those of one folder.
set -uo pipefail
cd "$(dirname "$0")/.."
unset PYTHONDONTWRITEBYTECODE
logs=$(mktemp -d)
mapfile -t files < <(grep -rlE "mark\.slow|Slow" --include="test_*.py" "${@:-tests}" $([ $# = 0 ] && echo plugins devices) | sort)
status=0
printf '%-55s %7s %7s %7s %8s\n' file passed failed skipped minutes
for file in "${files[@]}"; do
    start=$SECONDS
    log=$logs/${file//\//_}.log
    uv run pytest -q -m slow "$file" >"$log" 2>&1
    code=$?
    [ $code = 5 ] && continue # no slow test in it after all
    [ $code = 0 ] || status=1
    last=$(tail -n 1 "$log")
    count() { grep -oE "[0-9]+ $1" <<<"$last" | grep -oE '[0-9]+' || echo 0; }
    printf '%-55s %7s %7s %7s %8s\n' "$file" "$(count passed)" "$(count failed)" "$(count skipped)" "$(((SECONDS - start + 30) / 60))"
done
echo "logs: $logs"
exit $status
