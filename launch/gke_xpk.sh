#!/usr/bin/env bash
# Pretrains on a TPU slice of a GKE cluster, as a workload of xpk.
#   launch/gke_xpk.sh [--dry-run] [--config.a.b=v ...]
# Variables:
#   PROJECT ZONE CLUSTER   the Google Cloud project, the zone and the GKE cluster
#   WORKLOAD               the name to give the workload: lower case, digits and -
#   TPU_TYPE               such as v5litepod-16
#   WORKDIR                gs://BUCKET/PATH, folder of the run
#   STORAGE                the name by which the cluster mounts BUCKET at /gcs/BUCKET (docs/launch.md)
#   IMAGE                  the image to build of launch/Dockerfile by docker, and to push; or
#   BASE_IMAGE             an image of launch/Dockerfile that is there: xpk lays this folder over it, without docker
#   CONFIG DATA_DIR        optional, as of tpu_vm_run.sh
#   NUM_SLICES             optional, 1 where not set
#   MAX_RESTARTS           optional: how often it goes on after a preemption or a crash, 20 where not set
# Once begun, a workload's name is taken: another start, which resumes, takes another WORKLOAD.
set -euo pipefail
launch=$(cd "$(dirname "$0")" && pwd)
. "$launch/commands.sh"
. "$launch/buckets.sh"

read_arguments "$@"
# One of the two is enough; where neither is set, the first is asked for.
image=IMAGE
[ -z "${BASE_IMAGE:-}" ] || image=BASE_IMAGE
need PROJECT ZONE CLUSTER WORKLOAD TPU_TYPE WORKDIR STORAGE "$image"
[ -z "${IMAGE:-}" ] || [ -z "${BASE_IMAGE:-}" ] ||
  refuse "IMAGE and BASE_IMAGE are both set: unset the one that is not to be used"
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
# xpk passes SIGTERM to the process it began: exec makes that the one that saves. 1 and 2 say what to
# mend; the statuses above are a stop (75) or a crash, and run again.
run xpk workload create "--cluster=$CLUSTER" "--workload=$WORKLOAD" "--project=$PROJECT" "--zone=$ZONE" \
  "--tpu-type=$TPU_TYPE" "--num-slices=$NUM_SLICES" "${source_flags[@]}" "--storage=$STORAGE" \
  "--max-restarts=$MAX_RESTARTS" --restart-on-exit-codes=3-126 --termination-grace-period-seconds=300 \
  "--command=exec $(quoted /app/launch/run_status.sh python -m "${job[@]:1}")"
