#!/usr/bin/env bash
# Prints the state of a Cloud TPU VM, the state of the run on each worker, and the end of worker 0's log.
#   launch/tpu_vm_status.sh [--dry-run]
# Variables:
#   PROJECT ZONE TPU_NAME   which Cloud TPU VM
#   LINES_OF_LOG            optional, default 20
set -euo pipefail
launch=$(cd "$(dirname "$0")" && pwd)
. "$launch/commands.sh"
. "$launch/tpu_vm.sh"

read_arguments "$@"
take_no_flags
need PROJECT ZONE TPU_NAME
LINES_OF_LOG=${LINES_OF_LOG:-20}
need_number LINES_OF_LOG

tpu tpu-vm describe "$TPU_NAME" '--format=value(state,health)'
on_worker all "$remote_state"
on_worker 0 "$detached log $LINES_OF_LOG"
