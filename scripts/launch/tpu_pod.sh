#!/usr/bin/env bash
# One run on all hosts of a TPU slice, from a clone of the repository on your own machine:
#
#   export TPU=NAME ZONE=us-central2-b
#   gcloud compute tpus tpu-vm create "$TPU" --zone="$ZONE" --accelerator-type=v4-32 --version=tpu-ubuntu2204-base
#   scripts/launch/tpu_pod.sh install
#   scripts/launch/tpu_pod.sh run train.py --save=gs://BUCKET/run --data_root=gs://BUCKET/data --seed=0 \
#       --compilation_cache=gs://BUCKET/programs
#   scripts/launch/tpu_pod.sh say                 # what the first host has printed
#   scripts/launch/tpu_pod.sh stop                # SIGTERM: the run saves; `run …` again goes on
#
# Every host runs the same command, and JAX finds the others by the slice's metadata. They share no disk, so
# --save is in a bucket of the same region, and --compilation_cache=gs://BUCKET/programs spares all later
# starts, on any host, what was compiled before. If a host is lost, the others end within
# config.placement.lost_after seconds; `run …` goes on from the newest state.
# Written for lack of a slice without having been run (2026-11-27).
set -euo pipefail
: "${TPU:?the name of the slice}" "${ZONE:?its zone}"
on() { gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker="$1" --command="$2"; }

case ${1:-} in
install)
    git archive --format=tar.gz --output=/tmp/giung2_ext.tar.gz HEAD
    gcloud compute tpus tpu-vm scp /tmp/giung2_ext.tar.gz "$TPU:" --zone="$ZONE" --worker=all
    on all "mkdir -p giung2_ext && tar xzf giung2_ext.tar.gz -C giung2_ext && cd giung2_ext &&
        sudo apt-get install -y -q python3.11-venv && python3.11 -m venv .venv &&
        .venv/bin/pip install -q -e '.[tpu,gcs]' -c constraints.txt"
    ;;
run)
    words=$(printf '%q ' "scripts/$2" "${@:3}")
    on all "cd giung2_ext && (setsid nohup .venv/bin/python $words >>log 2>&1 & echo \$! >pid)"
    ;;
say) on 0 "tail -n 20 -f giung2_ext/log" ;;
stop) on all "kill -TERM \$(cat giung2_ext/pid)" ;;
*) echo "usage: $0 install | run SCRIPT FLAGS | say | stop" && exit 2 ;;
esac
