#!/usr/bin/env bash
# Starts a run on all workers of a Cloud TPU VM; it continues when the connection drops.
#   launch/tpu_vm_run.sh [--dry-run] [--config.a.b=v ...]
# Variables:
#   PROJECT ZONE TPU_NAME   which Cloud TPU VM; run tpu_vm_setup.sh first
#   WORKDIR                 the folder of the run: gs://BUCKET/PATH, or a path that all workers share
#   CONFIG                  optional: configs/NAME.py[:RECIPE], by default configs/simsiam_gsg.py
#   DATA_DIR                optional: --config.data.dir, gs://BUCKET/PATH or a path on the workers
# The same command resumes; after a worker was rebooted run tpu_vm_setup.sh first, which mounts the buckets
# again. tpu_vm_status.sh shows the state.
set -euo pipefail
launch=$(cd "$(dirname "$0")" && pwd)
. "$launch/commands.sh"
. "$launch/buckets.sh"
. "$launch/tpu_vm.sh"

read_arguments "$@"
need PROJECT ZONE TPU_NAME WORKDIR

describe_job
list_buckets
# Without its bucket a run would begin anew, on a disk that goes with the machine.
mounts=""
for bucket in ${buckets[@]+"${buckets[@]}"}; do
  mounts+="mountpoint -q /gcs/$bucket || { echo 'error: /gcs/$bucket is not mounted: run launch/tpu_vm_setup.sh' >&2; exit 1; }; "
done
on_worker all "${mounts}cd $remote_root && $(quoted launch/detached.sh start .venv/bin/python "${job[@]}")"
