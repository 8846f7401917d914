#!/usr/bin/env bash
# Pretraining on several hosts under Slurm.
#
#   sbatch deploy/slurm.sh gin/runs/imagenet32_s_ar.gin runs/imagenet32_s_ar
#
# `multi_worker_strategy.cluster = 'slurm'` takes the hosts from Slurm's variables. The environment and the
# workdir are in a folder that all hosts share. At the time limit Slurm sends SIGTERM, which saves the state;
# the job is then queued again and resumes.
#SBATCH --job-name=igpt
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=64G
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

gin_file="${1:?usage: sbatch deploy/slurm.sh GIN_FILE WORKDIR [MORE FLAGS]}"
workdir="${2:?usage: sbatch deploy/slurm.sh GIN_FILE WORKDIR [MORE FLAGS]}"
shift 2

status=0
srun .venv/bin/igpt pretrain --gin_file="$gin_file" --workdir="$workdir" \
    --gin_param='train.strategy=@multi_worker_strategy()' \
    --gin_param='multi_worker_strategy.cluster="slurm"' "$@" || status=$?

# 143: ended by SIGTERM with the state saved.
if [ "$status" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
