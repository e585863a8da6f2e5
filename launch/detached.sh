#!/usr/bin/env bash
# Runs a command line of gsg_jax.main on this machine, detached: it goes on when the ssh that began it drops.
#   launch/detached.sh start COMMAND...   begins it, unless one is under way
#   launch/detached.sh state              one line, `state: WORD`
#   launch/detached.sh log [LINES]        the end of its log, 20 lines where not said
#   launch/detached.sh stop               SIGTERM: it saves and ends
# WORD is none, running, done, failed (a line said what to mend), stopped (it was told to, and has
# saved), crashed, or lost (its machine went down). The log is runs/detached/log.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=runs/detached

state() {
  local pid
  if [ -f "$folder/status" ]; then
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
      echo "error: a run is under way, process $(cat "$folder/pid"): launch/detached.sh stop ends it" >&2
      exit 1
    fi
    mkdir -p "$folder"
    rm -f "$folder/status" "$folder/pid"
    # A session of its own: no signal of the terminal reaches it.
    setsid launch/detached.sh run "$@" </dev/null >>"$folder/log" 2>&1 &
    until [ -f "$folder/pid" ] || [ -f "$folder/status" ]; do sleep 0.05; done
    ;;
  run)
    # Where the machine goes down, every process is told: this one waits for the run to have saved.
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
  state) echo "state: $(state)" ;;
  log) [ ! -f "$folder/log" ] || tail -n "${1:-20}" "$folder/log" ;;
  stop)
    [ "$(state)" = running ] || { echo "error: no run is under way" >&2; exit 1; }
    kill -TERM "$(cat "$folder/pid")"
    ;;
  *)
    echo "usage: launch/detached.sh start COMMAND... | state | log [LINES] | stop" >&2
    exit 2
    ;;
esac
