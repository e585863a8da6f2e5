#!/usr/bin/env bash
# Pretrains on this machine, and goes on after a crash, from the last checkpoint.
#   launch/local.sh WORKDIR [CONFIG] [FLAGS...]
#   launch/local.sh runs/mine configs/simsiam_gsg.py:folder --config.data.dir=$HOME/photos
# Set MAX_RESTARTS (default 3) to choose how often a crash is survived; wrong usage is never retried.
set -euo pipefail

usage() {
  echo "usage: launch/local.sh WORKDIR [CONFIG] [--config.a.b=v ...]" >&2
  exit 2
}

if [ $# -eq 0 ] || [[ $1 = -* ]]; then usage; fi
workdir=$1
shift
config=configs/simsiam_gsg.py
if [ $# -ge 1 ] && [[ $1 != -* ]]; then
  config=$1
  shift
fi

root=$(cd "$(dirname "$0")/.." && pwd)
python=$root/.venv/bin/python
[ -x "$python" ] || { echo "no $python: run 'make setup' in $root first" >&2; exit 2; }
[[ $config = /* ]] || config=$root/$config

for ((restart = 0; ; restart++)); do
  status=0
  "$python" -m gsg_jax.main --config="$config" --workdir="$workdir" "$@" || status=$?
  # 0: done; 1 and 2: a line said what to mend. Anything else is a crash or a kill.
  [ "$status" -gt 2 ] || exit "$status"
  [ "$restart" -lt "${MAX_RESTARTS:-3}" ] || exit "$status"
  echo "ended with status $status: going on from the last checkpoint in $workdir" >&2
done
