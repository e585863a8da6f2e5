#!/usr/bin/env bash
# Copies gsg_jax, as committed here, to all workers of a Cloud TPU VM, installs it and mounts buckets.
#   launch/tpu_vm_setup.sh [--dry-run]
# Variables:
#   PROJECT ZONE TPU_NAME   which Cloud TPU VM
#   WORKDIR DATA_DIR        optional: buckets of gs://BUCKET/PATH are mounted at /gcs/BUCKET
set -euo pipefail
launch=$(cd "$(dirname "$0")" && pwd)
. "$launch/commands.sh"
. "$launch/buckets.sh"
. "$launch/tpu_vm.sh"

read_arguments "$@"
take_no_flags
need PROJECT ZONE TPU_NAME

list_buckets

root=$(cd "$launch/.." && pwd)
archive=$root/runs/$TPU_NAME.tar.gz
if [ "$dry_run" = false ] && [ -n "$(git -C "$root" status --porcelain)" ]; then
  echo "warning: uncommitted changes are not copied: $(git -C "$root" status --porcelain | head -n 3 | tr '\n' ' ')" >&2
fi
run mkdir -p "$root/runs"
run git -C "$root" archive --format=tar.gz "--output=$archive" HEAD
tpu tpu-vm scp "$archive" "$TPU_NAME:$remote_root.tar.gz" --worker=all
run rm -f "$archive"
on_worker all "mkdir -p $remote_root && tar -xzf $remote_root.tar.gz -C $remote_root && cd $remote_root && \
$(quoted launch/worker_setup.sh tpu ${buckets[@]+"${buckets[@]}"})"
