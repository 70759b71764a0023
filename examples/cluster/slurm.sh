#!/usr/bin/env bash
# A run as an array of jobs of SLURM: sbatch --array=1-16 slurm.sh RUN_FILE collect
# Then in the order of the stages, each after the one before (sbatch --dependency=afterok:JOB):
#   sbatch slurm.sh RUN_FILE seal
#   sbatch --array=1-10 slurm.sh RUN_FILE distill
#   sbatch --array=1-10 slurm.sh RUN_FILE evaluate
#   sbatch slurm.sh RUN_FILE rest
# A task that was killed goes on from its last block when it is started again (scontrol requeue).
#SBATCH --cpus-per-task=1
#SBATCH --mem=4G
#SBATCH --requeue
set -euo pipefail
file=$1 stage=$2
out=${OUT:-runs/$(basename "${file%.*}")}
export OMP_NUM_THREADS=1
case $stage in
    collect | distill | evaluate)
        exec rldistill "$stage" "$file" --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" --quiet out="$out" ;;
    seal) exec rldistill dataset seal "$out" ;;
    rest) exec rldistill run "$file" --resume --quiet out="$out" ;;
    *) echo "usage: slurm.sh RUN_FILE collect|seal|distill|evaluate|rest" >&2; exit 2 ;;
esac
