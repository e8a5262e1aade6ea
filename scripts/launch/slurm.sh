#!/usr/bin/env bash
# One run as several processes of SLURM, from a clone of the repository on a disk that all nodes see:
#
#   sbatch --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 --time=24:00:00 scripts/launch/slurm.sh \
#       train.py --save=save/run --data_root=DIR --seed=0
#
# One task for each GPU: JAX gives every task the device of its local number, so let all tasks of a node see
# all GPUs of it (--gpus-per-node, not --gpus-per-task). JAX finds the other processes by SLURM's variables.
# Two minutes before the end SLURM sends SIGTERM: the run saves and leaves with status 75, and the job is put
# into the queue again, to go on from there. So it is when another job is to have the nodes (--requeue).
# Many runs, one for each GPU: scripts/sweep.py --cluster=slurm --slurm.time=… --gpus=1
#
#SBATCH --job-name=giung2_ext
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -u
script=$1
shift

status=0
srun --kill-on-bad-exit=0 "${PYTHON:-.venv/bin/python}" "scripts/$script" "$@" || status=$?
if [ "$status" = 75 ]; then # stopped, and saved
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
