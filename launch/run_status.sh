#!/usr/bin/env bash
# Runs a command line of gsg_jax.main, and tells by the exit status whether to run it again.
#   launch/run_status.sh COMMAND...
# 0: done. 1 and 2: a line said what to mend; do not run it again. 75: it was told to stop (SIGTERM),
# and has saved; the same command goes on. Anything else: it crashed; the same command goes on.
# SIGTERM to this script reaches the command. Standard output is that of the command, at its end.
set -euo pipefail

if [ $# -eq 0 ]; then
  echo "usage: launch/run_status.sh COMMAND..." >&2
  exit 2
fi

output=$(mktemp)
command=""
trap 'rm -f "$output"' EXIT
trap 'told=true; [ -z "$command" ] || kill -TERM "$command" 2>/dev/null || true' TERM INT
"$@" >"$output" &
command=$!
status=""
told=true
# A signal to this script ends wait, not the command.
while [ "$told" = true ]; do
  told=false
  ended=0
  wait "$command" 2>/dev/null || ended=$?
  # 127: bash has told of this end already, and a signal came just after.
  if [ -z "$status" ] || [ "$ended" -ne 127 ]; then status=$ended; fi
done
cat "$output"

# Standard output of a run is one line of JSON; of several hosts, one each at most.
line=$(grep '"num_steps"' "$output" | tail -n 1 || true)
if [ "$status" -eq 0 ] &&
  [[ $line =~ \"step\":\ *([0-9]+) ]] && step=${BASH_REMATCH[1]} &&
  [[ $line =~ \"num_steps\":\ *([0-9]+) ]] && [ "$step" -lt "${BASH_REMATCH[1]}" ]; then
  exit 75
fi
exit "$status"
