#!/usr/bin/env bash
# Runs a command line of gsg_jax.main detached, so that it continues when the ssh connection drops.
#   launch/detached.sh start COMMAND...   starts it, unless one is running
#   launch/detached.sh state [COMMAND...] prints one line, `state: WORD`; of a command that is given, none
#                                         if the last run, which has ended, was another command's
#   launch/detached.sh log [LINES]        prints the end of its log, 20 lines by default
#   launch/detached.sh stop               sends SIGTERM: it saves and ends
# WORD is none, running, done, failed (with an error line that says how to fix it), stopped (on request,
# and saved), crashed, or lost (its machine went down). The log is runs/detached/log.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=runs/detached

state() {
  local pid
  if [ -f "$folder/status" ] && [ $# -gt 0 ] && [ "$(printf '%q ' "$@")" != "$(cat "$folder/command")" ]; then
    echo none
  elif [ -f "$folder/status" ]; then
    case $(cat "$folder/status") in
      0) echo "done" ;;
      1 | 2) echo failed ;;
      75) echo stopped ;;
      *) echo crashed ;;
    esac
  elif [ ! -f "$folder/pid" ]; then
    echo none
  else
    pid=$(cat "$folder/pid")
    if kill -0 "$pid" 2>/dev/null; then echo running; else echo lost; fi
  fi
}

verb=${1:-}
shift || true
case $verb in
  start)
    [ $# -gt 0 ] || { echo "usage: launch/detached.sh start COMMAND..." >&2; exit 2; }
    if [ "$(state)" = running ]; then
      echo "error: a run is active, process $(cat "$folder/pid"): stop it with launch/detached.sh stop" >&2
      exit 1
    fi
    mkdir -p "$folder"
    rm -f "$folder/status" "$folder/pid"
    printf '%q ' "$@" >"$folder/command"
    # In a session of its own, so that no signal of the terminal reaches it.
    setsid launch/detached.sh run "$@" </dev/null >>"$folder/log" 2>&1 &
    until [ -f "$folder/pid" ] || [ -f "$folder/status" ]; do sleep 0.05; done
    ;;
  run)
    # A shutdown signals every process: this one waits until the run has saved.
    trap : TERM INT HUP
    launch/run_status.sh "$@" &
    run=$!
    echo "$run" >"$folder/pid.partial"
    mv "$folder/pid.partial" "$folder/pid"
    status=0
    wait "$run" || status=$?
    while kill -0 "$run" 2>/dev/null; do
      status=0
      wait "$run" || status=$?
    done
    echo "ended with status $status"
    echo "$status" >"$folder/status.partial"
    mv "$folder/status.partial" "$folder/status"
    ;;
  state) echo "state: $(state "$@")" ;;
  log) [ ! -f "$folder/log" ] || tail -n "${1:-20}" "$folder/log" ;;
  stop)
    [ "$(state)" = running ] || { echo "error: no run is active" >&2; exit 1; }
    kill -TERM "$(cat "$folder/pid")"
    ;;
  *)
    echo "usage: launch/detached.sh start COMMAND... | state | log [LINES] | stop" >&2
    exit 2
    ;;
esac
