#!/usr/bin/env bash
# Pre-training on all GPUs of several nodes: one torchrun a node, which meet at the first node.
# usage: sbatch [--nodes=4] runs/slurm_nodes.sh STORE RUN [options of chess-cxr pretrain, such as --preset chess_paper]
# STORE and RUN lie where all nodes see them.  Two minutes before the time is up the ranks write a checkpoint and the job
# queues again, where it continues the run, on as many nodes as divide the batch.
#SBATCH --job-name=chess-cxr
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
set -euo pipefail
if [ $# -lt 2 ]; then echo "usage: sbatch runs/slurm_nodes.sh STORE RUN [options]" >&2; exit 2; fi
store=$1 run=$2
shift 2
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun --kill-on-bad-exit=1 torchrun \
  --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="${SLURM_GPUS_ON_NODE:-gpu}" --max-restarts=3 \
  --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$first:$((20000 + SLURM_JOB_ID % 20000))" \
  --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 --shutdown-timeout 100 \
  -m chess_cxr pretrain "$store" --out "$run" "$@" &
step=$!

# SIGUSR1 reaches this shell alone (B:); srun forwards it to the torchrun of every node, which passes it on to its ranks.
stopped=0
trap 'stopped=1; kill -USR1 "$step" 2>/dev/null || true' USR1
trap 'kill -TERM "$step" 2>/dev/null || true' TERM  # pre-empted: SLURM queues the job again by itself

code=0
wait "$step" || code=$?
# a signal ends `wait` early
while kill -0 "$step" 2>/dev/null; do code=0; wait "$step" || code=$?; done
if [ "$stopped" = 1 ] && [ "$code" != 0 ]; then
  echo "stopped by the scheduler; the job queues again" >&2
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
