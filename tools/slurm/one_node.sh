#!/usr/bin/env bash
#SBATCH --job-name=restr
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# Training on one node. From the repository's folder, with the environment activated:
#   sbatch tools/slurm/one_node.sh --data_dir data/mscoco/unc_480_batch --adamW --amp
# docs/CLUSTER.md explains each line.
set -euo pipefail

srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 \
    torchrun --standalone --nproc_per_node="$SLURM_GPUS_ON_NODE" \
    --signals_to_handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
    train_restr.py "$@" --resume &
training=$!
stopped=0
trap 'stopped=1; kill -USR1 "$training" || true' USR1

code=0
wait "$training" || code=$?
if [ "$stopped" = 1 ]; then
    code=0
    wait "$training" || code=$?
    if [ "$code" != 0 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
fi
exit "$code"
