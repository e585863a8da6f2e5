#!/usr/bin/env bash
# Runs a command line of gsg_jax.main; the exit status says whether to run it again.
#   launch/run_status.sh COMMAND...
# 0: done. 1 and 2: an error line says how to fix it; do not run it again. 75: it was stopped by SIGTERM and has
# saved; the same command resumes. Anything else: it crashed; the same command resumes.
# SIGTERM to this script reaches the command, whose standard output is printed when it ends.
set -euo pipefail

if [ $# -eq 0 ]; then
  echo "usage: launch/run_status.sh COMMAND..." >&2
  exit 2
fi

output=$(mktemp)
command=""
trap 'rm -f "$output"' EXIT
trap 'signalled=true; [ -z "$command" ] || kill -TERM "$command" 2>/dev/null || true' TERM INT
"$@" >"$output" &
command=$!
status=""
signalled=true
# A signal to this script ends wait, not the command.
while [ "$signalled" = true ]; do
  signalled=false
  ended=0
  wait "$command" 2>/dev/null || ended=$?
  # 127: bash has reported this end already, and a signal came just after.
  if [ -z "$status" ] || [ "$ended" -ne 127 ]; then status=$ended; fi
done
cat "$output"

# A run prints one line of JSON on standard output; several hosts, at most one each.
line=$(grep '"num_steps"' "$output" | tail -n 1 || true)
if [ "$status" -eq 0 ] &&
  [[ $line =~ \"step\":\ *([0-9]+) ]] && step=${BASH_REMATCH[1]} &&
  [[ $line =~ \"num_steps\":\ *([0-9]+) ]] && [ "$step" -lt "${BASH_REMATCH[1]}" ]; then
  exit 75
fi
exit "$status"
