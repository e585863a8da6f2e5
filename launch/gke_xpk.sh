#!/usr/bin/env bash
# Pretrains on a TPU slice of a GKE cluster, as a workload of xpk.
#   launch/gke_xpk.sh [--dry-run] [--config.a.b=v ...]
# Variables:
#   PROJECT ZONE CLUSTER   the Google Cloud project, the zone and the GKE cluster
#   WORKLOAD               a name for the workload: lower-case letters, digits and -
#   TPU_TYPE               for example v5litepod-16
#   WORKDIR                gs://BUCKET/PATH, the folder of the run
#   STORAGE                the name of the storage that mounts BUCKET at /gcs/BUCKET (docs/launch.md)
#   IMAGE                  the image to build from launch/Dockerfile with docker, and to push; or
#   BASE_IMAGE             an existing image of launch/Dockerfile: xpk lays this folder over it, without docker
#   CONFIG DATA_DIR        optional, as in tpu_vm_run.sh
#   NUM_SLICES             optional, default 1
#   MAX_RESTARTS           optional, default 20: how often to resume after a preemption or a crash
# A workload's name can be used only once: to resume by hand, choose another WORKLOAD.
set -euo pipefail
launch=$(cd "$(dirname "$0")" && pwd)
. "$launch/commands.sh"
. "$launch/buckets.sh"

read_arguments "$@"
# One of the two is needed; if neither is set, IMAGE is named as missing.
image=IMAGE
[ -z "${BASE_IMAGE:-}" ] || image=BASE_IMAGE
need PROJECT ZONE CLUSTER WORKLOAD TPU_TYPE WORKDIR STORAGE "$image"
[ -z "${IMAGE:-}" ] || [ -z "${BASE_IMAGE:-}" ] ||
  refuse "IMAGE and BASE_IMAGE are both set: unset one of them"
need_bucket WORKDIR
NUM_SLICES=${NUM_SLICES:-1}
MAX_RESTARTS=${MAX_RESTARTS:-20}
need_number NUM_SLICES
need_number MAX_RESTARTS

root=$(cd "$launch/.." && pwd)
if [ "$image" = IMAGE ]; then
  run docker build --platform=linux/amd64 "--tag=$IMAGE" "--file=$launch/Dockerfile" "$root"
  run docker push "$IMAGE"
  source_flags=("--docker-image=$IMAGE")
else
  source_flags=("--base-docker-image=$BASE_IMAGE" "--script-dir=$root")
fi

describe_job
# xpk sends SIGTERM to the process that it started: exec makes that the one that saves. Statuses 1 and 2 are
# errors to fix; higher ones are a stop (75) or a crash, and are run again (xpk adds 127 to 255 by itself).
run xpk workload create "--cluster=$CLUSTER" "--workload=$WORKLOAD" "--project=$PROJECT" "--zone=$ZONE" \
  "--tpu-type=$TPU_TYPE" "--num-slices=$NUM_SLICES" "${source_flags[@]}" "--storage=$STORAGE" \
  "--max-restarts=$MAX_RESTARTS" --restart-on-exit-codes=3-126 --termination-grace-period-seconds=300 \
  "--command=exec $(quoted /app/launch/run_status.sh python -m "${job[@]:1}")"
