#!/usr/bin/env bash
# Pre-training on all GPUs of one node.
# usage: sbatch runs/slurm_one_node.sh STORE RUN [options of chess-cxr pretrain, such as --preset chess_paper]
# Two minutes before the time is up the ranks write a checkpoint and the job queues again, where it continues the run.
#SBATCH --job-name=chess-cxr
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
set -euo pipefail
if [ $# -lt 2 ]; then echo "usage: sbatch runs/slurm_one_node.sh STORE RUN [options]" >&2; exit 2; fi
store=$1 run=$2
shift 2

torchrun --standalone --nproc-per-node="${SLURM_GPUS_ON_NODE:-gpu}" --max-restarts=3 \
  --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 --shutdown-timeout 100 \
  -m chess_cxr pretrain "$store" --out "$run" "$@" &
launcher=$!

# SIGUSR1 reaches this shell alone (B:); torchrun passes it on to the ranks and waits for their checkpoint.
stopped=0
trap 'stopped=1; kill -USR1 "$launcher" 2>/dev/null || true' USR1
trap 'kill -TERM "$launcher" 2>/dev/null || true' TERM  # pre-empted: SLURM queues the job again by itself

code=0
wait "$launcher" || code=$?
# a signal ends `wait` early
while kill -0 "$launcher" 2>/dev/null; do code=0; wait "$launcher" || code=$?; done
if [ "$stopped" = 1 ] && [ "$code" != 0 ]; then
  echo "stopped by the scheduler; the job queues again" >&2
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
