#!/usr/bin/env bash
# Deletes a Cloud TPU VM without asking. Its disks are lost; buckets stay.
#   launch/tpu_vm_delete.sh [--dry-run] [--queued]
# --queued: it belongs to a queued resource, which is deleted too.
# Variables:
#   PROJECT ZONE TPU_NAME   which Cloud TPU VM
set -euo pipefail
launch=$(cd "$(dirname "$0")" && pwd)
. "$launch/commands.sh"
. "$launch/tpu_vm.sh"

read_arguments "$@"
case ${flags[*]-} in
  "" | --queued) ;;
  *) refuse "'${flags[*]}': launch/tpu_vm_delete.sh takes --queued, --dry-run and --help" ;;
esac
need PROJECT ZONE TPU_NAME

if [ "${flags[*]-}" = --queued ]; then
  tpu queued-resources delete "$TPU_NAME" --force --quiet
else
  tpu tpu-vm delete "$TPU_NAME" --quiet
fi
