#!/usr/bin/env bash
# The whole path on synthetic scenes: annotations and images in, the paper's metrics out, everything under demo/.
# Each command is shown as you would type it. A second run skips what the same command has finished.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON="${PYTHON:-.venv/bin/python}"
OUT=demo
STEPS=1500
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

step shapes "$PYTHON" tools/make_shapes.py --root "$OUT" --level easy --image_size 64
step vocabulary "$PYTHON" build_vocab.py -d unc --root "$OUT"
for split in train val testA testB; do
    step "batches_$split" "$PYTHON" build_batches.py -d unc -t "$split" --img-size 64 --root "$OUT"
done
step train "$PYTHON" train_restr.py --data_dir "$BATCHES" --weights_dir "$OUT/weights" --exp_name demo --resume \
    --v_backbone vit_shapes_patch8 --l_backbone transformer_shapes --no_pretrained --input_size 64,64 \
    --adamW --lr 1e-3 --v_lr_scale 1 --weight_decay 0.01 --grad_clip 1 --alpha_loc 1 \
    --batch_size 32 --num_steps "$STEPS" --save_every 500 --log_every 50
evaluate val val --is_vis
evaluate testA testA
evaluate testB testB
evaluate val_rotated val --rotate_expressions

"$PYTHON" - "$OUT" "$SECONDS" <<'SUMMARY'
import json, pathlib, sys

out, seconds = pathlib.Path(sys.argv[1]), int(sys.argv[2])
rows = {name: json.loads((out / "results" / name / "metrics.json").read_text())
        for name in ("val", "testA", "testB", "val_rotated")}
print("\nRESULT (percent)    oIoU    mIoU  Prec@0.5  Prec@0.7  Prec@0.9  expressions")
for name, row in rows.items():
    prec = row["prec"]
    print(f"unc {name:13s} {row['oIoU']:7.2f} {row['mIoU']:7.2f} {prec['0.5']:9.2f} {prec['0.7']:9.2f} {prec['0.9']:9.2f} {row['n_samples']:12d}")
oiou, lost = rows["val"]["oIoU"], rows["val"]["oIoU"] - rows["val_rotated"]["oIoU"]
print(f"oIoU on val: {oiou:.2f} (expected: 75 or more)")
print(f"lost when each image's expressions are rotated among its refs: {lost:.2f} (expected: 50 or more)")
print(f"pictures: {out}/results/val/vis    this run took {seconds // 60} min {seconds % 60} s")
if oiou < 75 or lost < 50:
    sys.exit("demo: the model fell short of what is expected")
SUMMARY
