#!/usr/bin/env bash
# Pretrains on a queued resource of Cloud TPU to the end: asks for it, waits for ACTIVE, sets the workers up,
# runs, and where it is taken away asks again; the run resumes, since its folder is in a bucket.
#   launch/queued_resource.sh [--dry-run] [--config.a.b=v ...]
# Variables:
#   PROJECT ZONE       the Google Cloud project and the zone
#   TPU_NAME           the name of the resource and of its Cloud TPU VM
#   ACCELERATOR_TYPE   such as v5litepod-16
#   RUNTIME_VERSION    such as v2-alpha-tpuv5-lite
#   WORKDIR            gs://BUCKET/PATH, folder of the run, mounted on the workers by gcsfuse
#   CONFIG DATA_DIR    optional, as of tpu_vm_run.sh
#   SPOT               optional: 1 for spot capacity
#   NETWORK SUBNETWORK SERVICE_ACCOUNT   optional
#   MAX_RESTARTS       optional: how often it asks or runs again, 20 where not set
#   POLL_SECONDS       optional: time between looks at the state, 60 where not set
#   KEEP               optional: 1 leaves the resource in place at the end, else it is deleted
# It may be ended and begun again at any moment: the same command takes up what it finds. The last line
# of standard output is the run's. Exit status: 0 done; 1 the run says what to mend, or the restarts are
# used up; 2 wrong usage.
set -euo pipefail
launch=$(cd "$(dirname "$0")" && pwd)
. "$launch/commands.sh"
. "$launch/buckets.sh"
. "$launch/tpu_vm.sh"

# How many looks in a row may fail before it counts as an end.
max_failures=10

read_arguments "$@"
need PROJECT ZONE TPU_NAME ACCELERATOR_TYPE RUNTIME_VERSION WORKDIR
need_bucket WORKDIR
MAX_RESTARTS=${MAX_RESTARTS:-20}
POLL_SECONDS=${POLL_SECONDS:-60}
need_number MAX_RESTARTS
[[ $POLL_SECONDS =~ ^[0-9]+(\.[0-9]+)?$ ]] || refuse "POLL_SECONDS='$POLL_SECONDS' is no time: set POLL_SECONDS=60, say"

say() {
  echo "queued_resource: $1" >&2
}

create() {
  where_flags
  tpu queued-resources create "$TPU_NAME" "--node-id=$TPU_NAME" "--accelerator-type=$ACCELERATOR_TYPE" \
    "--runtime-version=$RUNTIME_VERSION" ${where[@]+"${where[@]}"}
}

# The states of all queued resources, a name and a state a line.
list() {
  tpu queued-resources list '--format=value(name.basename(),state.state)'
}

delete() {
  tpu queued-resources delete "$TPU_NAME" --force --quiet
}

begin_run() {
  "$launch/tpu_vm_run.sh" ${flags[@]+"${flags[@]}"}
}

if [ "$dry_run" = true ]; then
  echo "# until there is one:"
  list
  create
  echo "# every $POLL_SECONDS s until ACTIVE:"
  list
  "$launch/tpu_vm_setup.sh" --dry-run
  "$launch/tpu_vm_run.sh" --dry-run ${flags[@]+"${flags[@]}"}
  echo "# every $POLL_SECONDS s until the run has ended:"
  list
  on_worker all "$remote_state"
  echo "# where it is SUSPENDED, FAILED or PREEMPTED, from the top, $MAX_RESTARTS times at most:"
  delete
  echo "# at the end:"
  on_worker 0 "$detached log"
  [ -n "${KEEP:-}" ] || delete
  exit 0
fi

restarts=0
failures=0
trap 'say "ended here; the resource $TPU_NAME stays: the same command goes on, launch/tpu_vm_delete.sh --queued deletes it"; exit 130' INT TERM

# Ends with a status; first the log's end, and the resource is deleted.
finish() {
  on_worker 0 "$detached log" || say "worker 0 does not say its log"
  [ -n "${KEEP:-}" ] || delete >&2 || say "$TPU_NAME could not be deleted: do so, it costs"
  exit "$1"
}

# Counts another start; ends where there have been enough. $1: why; $2: active where worker 0 can be asked.
count_restart() {
  restarts=$((restarts + 1))
  if [ "$restarts" -gt "$MAX_RESTARTS" ]; then
    say "$1, and MAX_RESTARTS=$MAX_RESTARTS restarts are used up: the same command goes on"
    [ "$2" != active ] || finish 1
    exit 1
  fi
  say "$1: again ($restarts of $MAX_RESTARTS)"
}

# What the workers say together, one word. A host that crashed takes the others with it, and those
# may end with a line on it: so a crash anywhere is a crash, and only then does a failure count.
state_of_run() {
  local states
  states=$(on_worker all "$remote_state" | sed -n 's/^state: //p') || return 1
  case $'\n'$states$'\n' in
    *$'\nrunning\n'*) echo running ;;
    *$'\ncrashed\n'* | *$'\nlost\n'* | *$'\nstopped\n'*) echo ended ;;
    *$'\nnone\n'*) echo none ;;
    *$'\nfailed\n'*) echo failed ;;
    *$'\ndone\n'*) echo "done" ;;
    *) return 1 ;;
  esac
}

begun=false
shown=""
while :; do
  if listed=$(list); then
    state=$(awk -v name="$TPU_NAME" '$1 == name { print $2 }' <<<"$listed")
  else
    failures=$((failures + 1))
    [ "$failures" -lt "$max_failures" ] || {
      say "the queued resources could not be listed $failures times in a row: mend that, and the same command goes on"
      exit 1
    }
    sleep "$POLL_SECONDS"
    continue
  fi
  [ "$state" = "$shown" ] || say "$TPU_NAME is ${state:-not there}"
  shown=$state
  case $state in
    "")
      create
      continue
      ;;
    ACTIVE) ;;
    SUSPENDED | FAILED | PREEMPTED)
      delete >&2
      begun=false
      count_restart "$TPU_NAME was $state" gone
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
      failures=0
      delete >&2
      begun=false
      count_restart "the workers could not be reached $max_failures times in a row" gone
    fi
    sleep "$POLL_SECONDS"
    continue
  fi
  failures=0
  case $run_state in
    running) ;;
    done) finish 0 ;;
    failed)
      say "the run says what to mend, above or in its log"
      finish 1
      ;;
    ended)
      count_restart "the run ended before its last step" active
      begin_run >&2 || say "the run could not be begun"
      ;;
    none)
      [ "$begun" = false ] || count_restart "the run could not be begun" active
      begun=true
      if "$launch/tpu_vm_setup.sh" >&2; then
        begin_run >&2 || say "the run could not be begun on every worker"
      else
        say "the workers could not be set up"
      fi
      ;;
  esac
  sleep "$POLL_SECONDS"
done
