#!/usr/bin/env bash
# Pretrains on a queued resource of Cloud TPU to the end: requests it, waits until it is ACTIVE, sets up the
# workers and runs. If the resource is taken away, it is requested again, and the run resumes from its bucket.
#   launch/queued_resource.sh [--dry-run] [--config.a.b=v ...]
# Variables:
#   PROJECT ZONE       the Google Cloud project and the zone
#   TPU_NAME           the name of the resource and of its Cloud TPU VM
#   ACCELERATOR_TYPE   for example v5litepod-16
#   RUNTIME_VERSION    for example v2-alpha-tpuv5-lite
#   WORKDIR            gs://BUCKET/PATH, the folder of the run, which gcsfuse mounts on the workers
#   CONFIG DATA_DIR    optional, as in tpu_vm_run.sh
#   SPOT               optional: 1 for spot capacity
#   NETWORK SUBNETWORK SERVICE_ACCOUNT   optional
#   MAX_RESTARTS       optional, default 20: how often to request or run again
#   POLL_SECONDS       optional, default 60: seconds between two checks
#   KEEP               optional: 1 keeps the resource at the end instead of deleting it
# This script may be stopped and started again at any time: the same command continues from what it finds.
# Standard output ends with the end of the run's log. Exit status: 0 done; 1 an error to fix, or no restarts
# left; 2 wrong usage.
set -euo pipefail
launch=$(cd "$(dirname "$0")" && pwd)
. "$launch/commands.sh"
. "$launch/buckets.sh"
. "$launch/tpu_vm.sh"

# How many checks in a row may fail.
max_failures=10

read_arguments "$@"
need PROJECT ZONE TPU_NAME ACCELERATOR_TYPE RUNTIME_VERSION WORKDIR
need_bucket WORKDIR
MAX_RESTARTS=${MAX_RESTARTS:-20}
POLL_SECONDS=${POLL_SECONDS:-60}
need_number MAX_RESTARTS
[[ $POLL_SECONDS =~ ^[0-9]+(\.[0-9]+)?$ ]] || refuse "POLL_SECONDS='$POLL_SECONDS' is not a number of seconds: set it, for example POLL_SECONDS=60"

# The state of this command's run on a worker: on a resource that was kept another one may have ended.
describe_job
state_of_job="if [ -x $detached ]; then $(quoted $detached state .venv/bin/python "${job[@]}"); else echo state: none; fi"

say() {
  echo "queued_resource: $1" >&2
}

create() {
  where_flags
  tpu queued-resources create "$TPU_NAME" "--node-id=$TPU_NAME" "--accelerator-type=$ACCELERATOR_TYPE" \
    "--runtime-version=$RUNTIME_VERSION" ${where[@]+"${where[@]}"}
}

# Prints one line for each queued resource: name and state.
list() {
  tpu queued-resources list '--format=value(name.basename(),state.state)'
}

delete() {
  tpu queued-resources delete "$TPU_NAME" --force --quiet
}

# A worker that was rebooted has lost its mounts, too.
set_up_and_start() {
  if "$launch/tpu_vm_setup.sh" >&2; then
    "$launch/tpu_vm_run.sh" ${flags[@]+"${flags[@]}"} >&2 || say "the run could not be started on every worker"
  else
    say "the workers could not be set up"
  fi
}

if [ "$dry_run" = true ]; then
  echo "# until it exists:"
  list
  create
  echo "# every $POLL_SECONDS s until ACTIVE:"
  list
  "$launch/tpu_vm_setup.sh" --dry-run
  "$launch/tpu_vm_run.sh" --dry-run ${flags[@]+"${flags[@]}"}
  echo "# every $POLL_SECONDS s until the run has ended:"
  list
  on_worker all "$state_of_job"
  echo "# if it is SUSPENDED, FAILED or PREEMPTED, again from the top, at most $MAX_RESTARTS times:"
  delete
  echo "# at the end:"
  on_worker 0 "$detached log"
  [ -n "${KEEP:-}" ] || delete
  exit 0
fi

restarts=0
failures=0
trap 'say "stopped; the resource $TPU_NAME stays: the same command continues, launch/tpu_vm_delete.sh --queued deletes it"; exit 130' INT TERM

# Prints the end of the log, deletes the resource and exits with a status.
finish() {
  on_worker 0 "$detached log" || say "the log of worker 0 cannot be read"
  [ -n "${KEEP:-}" ] || delete >&2 || say "$TPU_NAME could not be deleted: delete it by hand, because it costs money"
  exit "$1"
}

# Counts a check or request that failed, and exits if there were too many in a row. $1: what failed.
count_failure() {
  failures=$((failures + 1))
  [ "$failures" -lt "$max_failures" ] || {
    say "$1 $failures times in a row: fix that, and the same command continues"
    exit 1
  }
  sleep "$POLL_SECONDS"
}

# Counts a restart, and exits if there were too many. $1: the reason; $2: active if worker 0 can be reached.
count_restart() {
  restarts=$((restarts + 1))
  if [ "$restarts" -gt "$MAX_RESTARTS" ]; then
    say "$1, and all MAX_RESTARTS=$MAX_RESTARTS restarts are used: the same command resumes"
    [ "$2" != active ] || finish 1
    exit 1
  fi
  say "$1: restart $restarts of $MAX_RESTARTS"
}

# Prints one word for the state of all workers. A host that crashes ends the others too, possibly with an
# error line: so a crash anywhere counts before a failure anywhere.
state_of_run() {
  local states
  states=$(on_worker all "$state_of_job" | sed -n 's/^state: //p') || return 1
  case $'\n'$states$'\n' in
    *$'\nrunning\n'*) echo running ;;
    *$'\ncrashed\n'* | *$'\nlost\n'* | *$'\nstopped\n'*) echo ended ;;
    *$'\nnone\n'*) echo none ;;
    *$'\nfailed\n'*) echo failed ;;
    *$'\ndone\n'*) echo "done" ;;
    *) return 1 ;;
  esac
}

started=false
shown=""
while :; do
  if listed=$(list); then
    state=$(awk -v name="$TPU_NAME" '$1 == name { print $2 }' <<<"$listed")
  else
    count_failure "the queued resources could not be listed"
    continue
  fi
  [ "$state" = "$shown" ] || say "$TPU_NAME is ${state:-not requested yet}"
  shown=$state
  case $state in
    "")
      # The first request may be wrong; a later one can only fail for a while.
      create || { [ "$restarts" -gt 0 ] || exit 1; count_failure "the resource could not be requested"; }
      continue
      ;;
    ACTIVE) ;;
    SUSPENDED | FAILED | PREEMPTED)
      if delete >&2; then
        started=false
        count_restart "$TPU_NAME was $state" gone
      else
        count_failure "the resource could not be deleted"
      fi
      continue
      ;;
    *)
      failures=0
      sleep "$POLL_SECONDS"
      continue
      ;;
  esac

  if ! run_state=$(state_of_run); then
    failures=$((failures + 1))
    if [ "$failures" -ge "$max_failures" ]; then
      if delete >&2; then
        failures=0
        started=false
        count_restart "the workers could not be reached $max_failures times in a row" gone
      elif [ "$failures" -ge $((2 * max_failures)) ]; then
        say "$TPU_NAME can neither be reached nor deleted: delete it by hand, because it costs money"
        exit 1
      fi
    fi
    sleep "$POLL_SECONDS"
    continue
  fi
  failures=0
  case $run_state in
    running) ;;
    done) finish 0 ;;
    failed)
      say "the run says what to fix, above or in its log"
      finish 1
      ;;
    ended)
      count_restart "the run ended before its last step" active
      set_up_and_start
      ;;
    none)
      [ "$started" = false ] || count_restart "the run could not be started" active
      started=true
      set_up_and_start
      ;;
  esac
  sleep "$POLL_SECONDS"
done
