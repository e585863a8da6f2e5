#!/usr/bin/env bash
# Creates a Cloud TPU VM: the slice and its hosts.
#   launch/tpu_vm_create.sh [--dry-run]
# Variables:
#   PROJECT ZONE       the Google Cloud project and the zone
#   TPU_NAME           a name for it
#   ACCELERATOR_TYPE   for example v5litepod-16
#   RUNTIME_VERSION    for example v2-alpha-tpuv5-lite
#   SPOT               optional: 1 for spot capacity, which may be taken away at any time
#   NETWORK SUBNETWORK SERVICE_ACCOUNT   optional
set -euo pipefail
launch=$(cd "$(dirname "$0")" && pwd)
. "$launch/commands.sh"
. "$launch/tpu_vm.sh"

read_arguments "$@"
take_no_flags
need PROJECT ZONE TPU_NAME ACCELERATOR_TYPE RUNTIME_VERSION

where_flags
tpu tpu-vm create "$TPU_NAME" "--accelerator-type=$ACCELERATOR_TYPE" "--version=$RUNTIME_VERSION" \
  ${where[@]+"${where[@]}"}
