#!/usr/bin/env bash
# Tests, tunes and measures the GPU kernels in under 8 minutes, with the Python that the machine has: nothing is installed.
#
#     profiling/gpu_session.sh FOLDER        # PYTHON=... another interpreter, GNNREC_DATA=... the data sets' folder
#
# FOLDER gets session.json (exit code and seconds of every part), tests.txt, tune.txt, tune.json, launches.json,
# bench.txt, bench_ops.json and bench_ops.txt; a part that fails or runs out of time leaves what it had. The last output
# is a table. Exit code: 0, 1 where a part failed, 2 where there is no GPU to run on.
set -uo pipefail
out=$(mkdir -p "${1:?a folder for the results}" && cd "$1" && pwd)
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
"$python" -c '
import sys
from gnnrec import device, errors
try:
    device.resolve("cuda")
except errors.GnnrecError as error:
    sys.exit(print(error, file=sys.stderr) or 2)' || exit

cache=$(mktemp -d)
trap 'rm -rf "$cache"' EXIT
export XDG_CACHE_HOME=$cache  # what is tuned here is used here alone
parts=() failed=0

# part NAME LIMIT FILE COMMAND...: seconds at the most; its output goes into the file.
part() {
    local name=$1 limit=$2 file=$3 start=$SECONDS code=0
    shift 3
    timeout --kill-after=5 "$limit" "$@" >>"$out/$file" 2>&1 || code=$?
    parts+=("\"$name\": {\"exit_code\": $code, \"seconds\": $((SECONDS - start)), \"limit_seconds\": $limit}")
    ((code == 0)) || failed=1
    (IFS=, && echo "{${parts[*]}}") >"$out/session.json"
    echo "$name: exit code $code after $((SECONDS - start)) s"
}

rm -f "$out"/{session.json,tests.txt,tune.txt,tune.json,launches.json,bench.txt,bench_ops.json,bench_ops.txt}
# The candidates are compiled while the tests run: neither measures anything.
for operator in $("$python" -c 'from gnnrec.ops import tuning; print(*tuning.CANDIDATES)'); do
    timeout --kill-after=5 150 "$python" profiling/tune.py --operators "$operator" --compile >>"$out/tune.txt" 2>&1 &
done
# On a GPU no numba kernels are shared between an operator's tests: any process may take any of them.
part tests 150 tests.txt "$python" -m pytest tests/gpu -rs -p no:cacheprovider --numprocesses auto --dist worksteal
wait
part tune 80 tune.txt "$python" profiling/tune.py --out "$out/tune.json"
[ ! -f "$cache/gnnrec/launches.json" ] || cp "$cache/gnnrec/launches.json" "$out"
part bench 200 bench.txt "$python" profiling/bench_ops.py --device cuda --out "$out"
rm -f "$out/bench_ops.png"  # bench_ops.json has its numbers

tail -n 25 "$out/tests.txt"
"$python" profiling/gpu_table.py "$out/bench_ops.json" || failed=1
exit "$failed"
