#!/usr/bin/env bash
# One host with several GPUs, from a clone of the repository: one process drives all of them, so that there is
# nothing to find.
#
#   scripts/launch/gpus.sh train.py --save=save/run --data_root=DIR --mixed_precision=true --seed=0
#   CUDA_VISIBLE_DEVICES=0,1 scripts/launch/gpus.sh train.py …            # on two of them
#
# A batch is cut over all GPUs (--mesh=data:8 says so); what is too large for them goes in parts with
# --grad_accum=auto. The run outlives the terminal and writes to LOG (run.log). `kill PID` lets it save, and the
# same line goes on. Many runs, one for each GPU: scripts/sweep.py --jobs=8 --gpus=1 (see its --help).
set -eu
script=$1
shift
log=${LOG:-run.log}

setsid nohup "${PYTHON:-.venv/bin/python}" "scripts/$script" "$@" >>"$log" 2>&1 </dev/null &
echo "process $! writes to $log"
