#!/usr/bin/env bash
#SBATCH --job-name=restr
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# Training on two nodes or more. From the repository's folder, with the environment activated:
#   sbatch tools/slurm/two_nodes.sh --data_dir data/mscoco/unc_480_batch --adamW --amp
# docs/CLUSTER.md explains each line.
set -euo pipefail

mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 \
    torchrun --nnodes="$SLURM_JOB_NUM_NODES" --nproc_per_node="$SLURM_GPUS_ON_NODE" \
    --rdzv_backend=c10d --rdzv_endpoint="${hosts[0]}:$((20000 + SLURM_JOB_ID % 10000))" --rdzv_id="$SLURM_JOB_ID" \
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
