#!/usr/bin/env bash
# Everything for one data set: check, build, train, evaluate, tables.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: tools/reproduce.sh DATASET        DATASET: unc, unc+, Gref, Gref_umd or referit
       (or refcoco, refcoco+, refcocog for the google split, the paper's, and refcocog_umd)

Checks the data, prepares every split, trains, evaluates every split and prints the tables. It can be stopped and started
again at any point with the same settings: what is complete is skipped, and training continues from its last checkpoint.
If settings that change a result differ from before, it stops and names them (choose another EXP_NAME for a second run).
Each command is shown as you would type it.

Settings, as environment variables (TRAIN_FLAGS="--adamW --amp" NUM_GPUS=8 tools/reproduce.sh unc):
  ROOT          folder that holds data/ and external/ (default: the repository)
  WEIGHTS       folder of checkpoints and results (default: ROOT/weights)
  EXP_NAME      name of the run's folder in it (default: restr_DATASET)
  IMG_SIZE      side of the images, or HEIGHT,WIDTH (default: 480)
  NUM_GPUS      processes for training and evaluation, through torchrun if more than 1 (default: 1)
  GLOVE         glove.6B.300d.txt, from which word embeddings are made if they are missing (default: none)
  BUILD_FLAGS   more flags for build_batches.py
  TRAIN_FLAGS   flags for train_restr.py (default: --adamW)
  EVAL_FLAGS    more flags for eval/evaluate.py
  CHECKPOINT    file of the run to evaluate (default: best.pth; for referit last.pth, as it has no validation split)
  IGNORE_CHECK  1: continue although tools/check_data.py found faults (default: 0)
  PYTHON        interpreter (default: .venv/bin/python of the repository if there, else python)
USAGE
}

dataset="${1:-}"
case "$dataset" in
    refcoco) dataset=unc ;;
    refcoco+) dataset=unc+ ;;
    refcocog) dataset=Gref ;;
    refcocog_umd) dataset=Gref_umd ;;
esac
case "$dataset" in
    unc | unc+) train=train valset=val evaluated="val testA testB" family=mscoco ;;
    Gref) train=train valset=val evaluated=val family=mscoco ;;
    Gref_umd) train=train valset=val evaluated="val test" family=mscoco ;;
    referit) train=trainval valset=test evaluated=test family=referit ;;
    -h | --help) usage && exit 0 ;;
    *) usage >&2 && exit 2 ;;
esac
if [ $# -ne 1 ]; then usage >&2 && exit 2; fi

repo="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
ROOT="${ROOT:-$repo}"
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python
    if [ -x "$repo/.venv/bin/python" ]; then PYTHON="$repo/.venv/bin/python"; fi
fi
IMG_SIZE="${IMG_SIZE:-480}"
NUM_GPUS="${NUM_GPUS:-1}"
WEIGHTS="${WEIGHTS:-$ROOT/weights}"
case "${EXP_NAME:-}" in */* | .*) echo "reproduce.sh: EXP_NAME is the name of a folder below WEIGHTS, without /" >&2 && exit 2 ;; esac
case "$NUM_GPUS" in *[!0-9]* | "" | 0*) echo "reproduce.sh: NUM_GPUS is a number, 1 or more" >&2 && exit 2 ;; esac
run="$WEIGHTS/${EXP_NAME:-restr_$dataset}"
case "$dataset" in referit) words=referit checkpoint=last.pth ;; *) words=Gref checkpoint=best.pth ;; esac
checkpoint="$run/${CHECKPOINT:-$checkpoint}"
case "$IMG_SIZE" in
    *,*) input_size="$IMG_SIZE" height="${IMG_SIZE%,*}" width="${IMG_SIZE#*,}" ;;
    *) input_size="$IMG_SIZE,$IMG_SIZE" height="$IMG_SIZE" width="$IMG_SIZE" ;;
esac
size="$height"
if [ "$height" != "$width" ]; then size="${height}x$width"; fi
batches="$ROOT/data/$family/${dataset}_${size}_batch"
# Flags are split at blanks, as on a command line.
read -ra build_flags <<<"${BUILD_FLAGS:-}"
read -ra train_flags <<<"${TRAIN_FLAGS:---adamW}"
read -ra eval_flags <<<"${EVAL_FLAGS:-}"
launcher=("$PYTHON")
if [ "$NUM_GPUS" -gt 1 ]; then launcher=("$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "$NUM_GPUS"); fi

trap '' PIPE  # do not stop when the reader of `| tee` was killed

show() {  # COMMAND...: print it as one would type it, then run it
    { printf '\n$' && printf ' %q' "$@" && printf '\n'; } 2>/dev/null || true  # nobody may be reading any more
    "$@"
}

is_built() {  # SPLIT
    "$PYTHON" - "$batches/meta.json" "$1" <<'PYTHON' 2>/dev/null
import json, sys
from pathlib import Path
sys.exit(not json.loads(Path(sys.argv[1]).read_text())["splits"][sys.argv[2]]["complete"])
PYTHON
}

results() {  # SPLIT: the folder of its metrics.json
    echo "$run/eval_${dataset}_$1_$(basename "$checkpoint" .pth)"
}

other_flags() {  # SPLIT: the flags that it was evaluated with, if EVAL_FLAGS are others that change the numbers
    "$PYTHON" - "$(results "$1")/metrics.json" "${eval_flags[@]}" <<'PYTHON' 2>/dev/null
import json, shlex, sys
from pathlib import Path
OURS = "data_dir set checkpoint output_dir restore_refseg iters".split()
SPEED = "num_workers batch_size device seed".split()
def deciding(words):
    kept = []
    for word in words:
        if word.startswith("-"):
            name = word.lstrip("-").split("=")[0].replace("-", "_")
            skip = name in OURS + SPEED
        if not skip:
            kept.append(word)
    return sorted(kept)
command = json.loads(Path(sys.argv[1]).read_text())["command"]
then, now = deciding(shlex.split(command)[1:]), deciding(sys.argv[2:])
if then != now:
    print(shlex.join(then) or "none")
PYTHON
}

is_evaluated() {  # SPLIT: with the checkpoint that is there now, or that was there when it was evaluated
    "$PYTHON" - "$(results "$1")/metrics.json" "$checkpoint" <<'PYTHON' 2>/dev/null
import hashlib, json, sys
from pathlib import Path
then, checkpoint = json.loads(Path(sys.argv[1]).read_text())["checkpoint"]["sha256"], Path(sys.argv[2])
sys.exit(checkpoint.exists() and hashlib.sha256(checkpoint.read_bytes()).hexdigest() != then)
PYTHON
}

unbuilt=() unevaluated=()
for split in $train $evaluated; do
    is_built "$split" || unbuilt+=("$split")
done
for split in $evaluated; do
    is_evaluated "$split" || unevaluated+=("$split")
done

if [ ! -f "$ROOT/data/vocabulary_$words.txt" ] && [ ${#unbuilt[@]} -gt 0 ]; then
    echo "No vocabulary was found: one is made from the training expressions. Published checkpoints need the published one."
    show "$PYTHON" "$repo/build_vocab.py" -d "$dataset" --root "$ROOT" ${GLOVE:+--glove "$GLOVE"}
elif [ -n "${GLOVE:-}" ] && [ ! -f "$ROOT/data/${words}_emb.npy" ]; then
    show "$PYTHON" "$repo/build_vocab.py" -d "$dataset" --root "$ROOT" --glove "$GLOVE"
fi
if [ ${#unbuilt[@]} -gt 0 ]; then
    if ! show "$PYTHON" "$repo/tools/check_data.py" -d "$dataset" --root "$ROOT"; then
        if [ "${IGNORE_CHECK:-0}" != 1 ]; then
            echo "reproduce.sh: fix what is marked FAULT, or set IGNORE_CHECK=1 to continue with the data as they are" >&2
            exit 1
        fi
        echo "IGNORE_CHECK=1: continuing with the data as they are"
    fi
fi
for split in "${unbuilt[@]}"; do
    show "$PYTHON" "$repo/build_batches.py" -d "$dataset" -t "$split" --img-size "$IMG_SIZE" --root "$ROOT" "${build_flags[@]}"
done

for split in $evaluated; do
    then="$(other_flags "$split")" || then=""
    if [ -n "$then" ]; then
        echo "reproduce.sh: $split was evaluated with EVAL_FLAGS: $then, not ${EVAL_FLAGS:-none}:" \
            "set the same, or remove $(results "$split")" >&2
        exit 2
    fi
done
# A finished run, too, is asked for: train_restr.py then compares flags and data with the run's, and ends at once.
if [ ${#unevaluated[@]} -gt 0 ] || [ -f "$run/last.pth" ]; then
    show "${launcher[@]}" "$repo/train_restr.py" --data_dir "$batches" --set "$train" --valset "$valset" \
        --input_size "$input_size" --weights_dir "$WEIGHTS" --exp_name "$(basename "$run")" --resume "${train_flags[@]}"
fi
for split in "${unevaluated[@]}"; do
    show "${launcher[@]}" "$repo/eval/evaluate.py" --data_dir "$batches" --set "$split" --checkpoint "$checkpoint" \
        --output_dir "$(results "$split")" "${eval_flags[@]}"
done
show "$PYTHON" "$repo/eval/tables.py" "$run"
