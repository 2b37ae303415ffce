#!/usr/bin/env bash
# The command of version 1.0, whose settings are environment variables; tools/reproduce.py has each as a flag:
#   TRAIN_FLAGS="--adamW --amp" NUM_GPUS=8 tools/reproduce.sh unc
set -euo pipefail
repo="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python=python
if [ -x "$repo/.venv/bin/python" ]; then python="$repo/.venv/bin/python"; fi
flags=()
for name in ROOT WEIGHTS EXP_NAME IMG_SIZE NUM_GPUS GLOVE BUILD_FLAGS TRAIN_FLAGS EVAL_FLAGS CHECKPOINT; do
    if [ -n "${!name:-}" ]; then flags+=("--${name,,}=${!name}"); fi
done
if [ "${IGNORE_CHECK:-0}" = 1 ]; then flags+=(--ignore_check); fi
exec "${PYTHON:-$python}" "$repo/tools/reproduce.py" "$@" "${flags[@]}"
