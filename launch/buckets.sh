# Where the folders of a bucket are found: gs://BUCKET/PATH is mounted by gcsfuse at /gcs/BUCKET/PATH.
# gsg_jax reads and writes plain folders; it does not take gs:// itself. Sourced after commands.sh.
# shellcheck shell=bash

# The path at which a folder is found on the workers: of gs://BUCKET/PATH where it is mounted.
mounted() {
  printf '%s' "${1/#gs:\/\///gcs/}"
}

# The bucket of gs://BUCKET/PATH; nothing of a plain path.
bucket_of() {
  local path=${1#gs://}
  [ "$path" = "$1" ] || printf '%s' "${path%%/*}"
}

# Ends unless the variable is gs://BUCKET/PATH.
need_bucket() {
  [[ ${!1} =~ ^gs://[a-z0-9][a-z0-9._-]+/.+ ]] ||
    refuse "$1='${!1}' is no folder of a bucket: set $1=gs://BUCKET/PATH, which outlives the machines"
}

# Sets job to the arguments of python that pretrain: of CONFIG, WORKDIR, DATA_DIR and the flags.
describe_job() {
  job=(-m gsg_jax.main "--config=${CONFIG:-configs/simsiam_gsg.py}" "--workdir=$(mounted "$WORKDIR")")
  [ -z "${DATA_DIR:-}" ] || job+=("--config.data.dir=$(mounted "$DATA_DIR")")
  # shellcheck disable=SC2154 # read_arguments sets flags
  job+=(${flags[@]+"${flags[@]}"})
}
