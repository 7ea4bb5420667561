#!/usr/bin/env bash
# Reads and writes out of bounds, and races, in the kernels of small cases; compute-sanitizer slows them a hundredfold.
set -euo pipefail
cd "$(dirname "$0")"

if ! command -v compute-sanitizer >/dev/null; then
    echo "compute-sanitizer is not installed: memory accesses and races were not checked"
    exit 0
fi
for tool in memcheck racecheck; do
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout "${LIMIT:-600}" compute-sanitizer --tool "$tool" --error-exitcode 1 \
        "${PYTHON:-python3}" -m pytest -q test_walk.py -k "test_against_the_reference and (33 or small)"
done
