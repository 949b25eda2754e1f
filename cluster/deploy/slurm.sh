#!/bin/bash
#SBATCH --job-name=run
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --time=12:00:00
#SBATCH --signal=USR1@300
#SBATCH --output=/shared/work/runs/run.job/log-%j.txt
#SBATCH --open-mode=append
#SBATCH --exclusive
#SBATCH --no-kill
#SBATCH --requeue

cd /shared/work || exit 2
export RAY_USAGE_STATS_ENABLED=0
folder=/shared/work/runs/run.job
exit_file="$folder/exit-$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"

# One launcher on each node. It hands SIGUSR1 on to the program, makes the token of this job's Ray cluster,
# and ends what it started; nothing else of yours on these nodes is touched.
srun --ntasks-per-node=1 --cpu-bind=none --no-kill --kill-on-bad-exit=0 --wait=0 \
  python -m hpfwi_cluster.launch --job /shared/work/runs/run.job -- \
  python -m hpfwi cluster work /shared/work/runs/run.job
code=$?

# The program's own exit code: srun's is that of whichever node ended worst.
[ -f "$exit_file" ] && code=$(cat "$exit_file")
[ "$code" -eq 75 ] && scontrol requeue "$SLURM_JOB_ID"
exit "$code"
