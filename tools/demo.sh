#!/usr/bin/env bash
# The whole path on synthetic scenes: annotations and images in, the paper's metrics out, everything under demo/.
# Each command is shown as you would type it. A second run skips what the same command has finished.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON="${PYTHON:-.venv/bin/python}"
OUT=demo
STEPS=750
BATCHES="$OUT/data/mscoco/unc_64_batch"
# step NAME COMMAND...: show the command, then run it unless it was finished before.
step() {
    local mark="$OUT/.done/$1"
    shift
    printf '\n$ %s\n' "$*"
    if [ -f "$mark" ]; then
        echo "(finished before; 'rm -r $OUT' starts over)"
        return
    fi
    "$@"
    touch "$mark"
}

evaluate() {  # NAME SPLIT [FLAGS]
    local name="$1" split="$2"
    shift 2
    step "evaluate_$name" "$PYTHON" eval/evaluate.py --data_dir "$BATCHES" --restore_refseg "$OUT/weights/demo" --iters "$STEPS" \
        --set "$split" --input-size 64,64 --output_dir "$OUT/results/$name" "$@"
}

# What another version of these commands has left behind does not fit these.
cmp -s tools/demo.sh "$OUT/.done/demo.sh" || rm -rf "$OUT"
mkdir -p "$OUT/.done"
cp tools/demo.sh "$OUT/.done/demo.sh"

step shapes "$PYTHON" tools/make_shapes.py --root "$OUT" --image_size 64 --images 1200 --val_images 100
step vocabulary "$PYTHON" build_vocab.py -d unc --root "$OUT"
for split in train val testA testB; do
    step "batches_$split" "$PYTHON" build_batches.py -d unc -t "$split" --img-size 64 --root "$OUT"
done
# A thread for each free core: threads wait for each other, so that one on a core that another program keeps busy makes
# a step several times slower than a single thread would be.
idle() { awk '/^cpu / { print $5 }' /proc/stat; }  # hundredths of a second, of all cores
before=$(idle); sleep 1
free=$(( ($(idle) - before + 30) / 100 ))
export OMP_NUM_THREADS=$(( free < 1 ? 1 : free > 8 ? 8 : free ))
printf '\nthreads that train: %s (cores that no other program uses: %s)\n' "$OMP_NUM_THREADS" "$free"

step train "$PYTHON" train_restr.py --data_dir "$BATCHES" --weights_dir "$OUT/weights" --exp_name demo --resume \
    --v_backbone vit_shapes_patch8 --l_backbone transformer_shapes --no_pretrained --input_size 64,64 \
    --adamW --lr 1e-3 --warm_iter 30 --v_lr_scale 1 --drop_path 0 --weight_decay 0.01 --alpha_loc 1 \
    --batch_size 32 --num_steps "$STEPS" --save_every "$STEPS" --log_every 50
# Side by side, on one core each: most of their time they load libraries.
export OMP_NUM_THREADS=1
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
for row in "val val --is_vis 24 --report" "testA testA" "testB testB" "val_rotated val --rotate_expressions"; do
    evaluate $row > "$OUT/.done/${row%% *}.log" 2>&1 &
done
failed=0
for job in $(jobs -p); do wait "$job" || failed=$?; done
cat "$OUT"/.done/{val,testA,testB,val_rotated}.log
[ "$failed" = 0 ] || exit "$failed"

"$PYTHON" tools/demo_report.py --out "$OUT" --seconds "$SECONDS"
