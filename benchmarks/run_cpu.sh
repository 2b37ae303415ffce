#!/usr/bin/env bash
# Every CPU row of RESULTS.md, as Markdown on standard output, in under 15 minutes on 2 cores with nothing beside it.
#   bash benchmarks/run_cpu.sh [FOLDER_OF_PHOTOGRAPHS] > results.md
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
PYTHON="${PYTHON:-python}"
photographs=()
if [ $# -gt 0 ]; then photographs=(--images "$1"); fi

printf '\n## %s\n\n' "Data: building, loading, start-up"
"$PYTHON" "$here/bench_data.py" "${photographs[@]}"
printf '\n## %s\n\n' "The model"
"$PYTHON" "$here/bench_model.py"
