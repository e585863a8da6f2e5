# How tpu_vm_*.sh and queued_resource.sh reach a Cloud TPU VM. Sourced after commands.sh.
# shellcheck shell=bash

# The folder of gsg_jax in the home directory of every worker.
remote_root=gsg_jax
# Prints the state of the run there, also before tpu_vm_setup.sh.
detached=$remote_root/launch/detached.sh
# shellcheck disable=SC2034 # for the scripts that source this
remote_state="if [ -x $detached ]; then $detached state; else echo state: none; fi"

# Runs a Cloud TPU command of gcloud in the zone and project.
tpu() {
  run gcloud compute tpus "$@" "--project=$PROJECT" "--zone=$ZONE"
}

# Runs a line of shell on one worker or on all.
on_worker() {
  tpu tpu-vm ssh "$TPU_NAME" "--worker=$1" "--command=$2"
}

# Sets where to the flags that tpu-vm create and queued-resources create share, for the variables that are set.
where_flags() {
  where=()
  [ -z "${NETWORK:-}" ] || where+=("--network=$NETWORK")
  [ -z "${SUBNETWORK:-}" ] || where+=("--subnetwork=$SUBNETWORK")
  [ -z "${SERVICE_ACCOUNT:-}" ] || where+=("--service-account=$SERVICE_ACCOUNT")
  [ -z "${SPOT:-}" ] || where+=(--spot)
}
