#!/usr/bin/env bash
# Prepares a TFDS image set as ArrayRecord on this machine, and copies it to a bucket.
#   launch/prepare_data.sh [--dry-run] [--manual_dir=DIR ...]
# Variables:
#   NAME       the set, for example cifar10 or imagenet2012
#   DATA_DIR   gs://BUCKET/PATH to copy to; the other scripts take the same variable
#   TFDS_DIR   optional: a folder on this machine, by default ~/tensorflow_datasets
# Flags go to `gsg-jax prepare`. Files that the bucket already has are not copied again.
set -euo pipefail
launch=$(cd "$(dirname "$0")" && pwd)
. "$launch/commands.sh"
. "$launch/buckets.sh"

read_arguments "$@"
need NAME DATA_DIR
need_bucket DATA_DIR
# shellcheck disable=SC2153 # NAME comes from the environment
[[ $NAME =~ ^[a-z][a-z0-9_]*(/[A-Za-z0-9_.-]+)?$ ]] || refuse "NAME='$NAME' is not a data set: set it, for example NAME=cifar10"
TFDS_DIR=${TFDS_DIR:-$HOME/tensorflow_datasets}

python=$(cd "$launch/.." && pwd)/.venv/bin/python
[ "$dry_run" = true ] || [ -x "$python" ] || refuse "no $python: run 'make setup' first"
run "$python" -m gsg_jax prepare "$NAME" "--data_dir=$TFDS_DIR" ${flags[@]+"${flags[@]}"}
run gcloud storage rsync --recursive "$TFDS_DIR/$NAME" "${DATA_DIR%/}/$NAME"
