# Paths of bucket folders: gcsfuse mounts gs://BUCKET/PATH at /gcs/BUCKET/PATH, because gsg_jax reads and
# writes plain folders and does not take gs:// itself. Sourced after commands.sh.
# shellcheck shell=bash

# Prints the path of a folder on the workers: for gs://BUCKET/PATH, its mount point.
mounted() {
  printf '%s' "${1/#gs:\/\///gcs/}"
}

# Prints the bucket of gs://BUCKET/PATH, and nothing for a plain path.
bucket_of() {
  local path=${1#gs://}
  [ "$path" = "$1" ] || printf '%s' "${path%%/*}"
}

# Sets buckets to those of WORKDIR and DATA_DIR, each once.
list_buckets() {
  local folder bucket
  buckets=()
  for folder in "${WORKDIR:-}" "${DATA_DIR:-}"; do
    bucket=$(bucket_of "$folder")
    [[ -z $bucket || " ${buckets[*]-} " = *" $bucket "* ]] || buckets+=("$bucket")
  done
}

# Refuses the variable unless it is gs://BUCKET/PATH.
need_bucket() {
  [[ ${!1} =~ ^gs://[a-z0-9][a-z0-9._-]+/.+ ]] ||
    refuse "$1='${!1}' is not a folder in a bucket: set $1=gs://BUCKET/PATH, which outlives the machines"
}

# Sets job to the arguments of python that pretrain, from CONFIG, WORKDIR, DATA_DIR and the flags.
describe_job() {
  job=(-m gsg_jax.main "--config=${CONFIG:-configs/simsiam_gsg.py}" "--workdir=$(mounted "$WORKDIR")")
  [ -z "${DATA_DIR:-}" ] || job+=("--config.data.dir=$(mounted "$DATA_DIR")")
  # shellcheck disable=SC2154 # read_arguments sets flags
  job+=(${flags[@]+"${flags[@]}"})
}
