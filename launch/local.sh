#!/usr/bin/env bash
# Pretrains on this machine, and resumes from the last checkpoint after a crash.
#   launch/local.sh WORKDIR [CONFIG] [FLAGS...]
#   launch/local.sh runs/mine configs/simsiam_gsg.py:folder --config.data.dir=$HOME/photos
# Variable: MAX_RESTARTS, how often to resume, default 3. Errors that must be fixed are not retried.
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
# A file of this folder or of the repository, or a name.
[ -f "${config%%:*}" ] || [ ! -f "$root/${config%%:*}" ] || config=$root/$config

for ((restart = 0; ; restart++)); do
  status=0
  "$python" -m gsg_jax.main --config="$config" --workdir="$workdir" "$@" || status=$?
  # 0: done; 1 and 2: an error to fix. Anything else is a crash or a kill.
  [ "$status" -gt 2 ] || exit "$status"
  [ "$restart" -lt "${MAX_RESTARTS:-3}" ] || exit "$status"
  echo "ended with status $status: resuming from the last checkpoint in $workdir" >&2
done
