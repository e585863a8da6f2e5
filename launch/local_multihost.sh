#!/usr/bin/env bash
# Runs a job as N hosts on this machine, over loopback, to try and test what several hosts do.
#   launch/local_multihost.sh N FLAGS...
#   launch/local_multihost.sh 2 --config=configs/simsiam_gsg.py --workdir=runs/two_hosts
# The last line of output is host 0's; the exit status is the first that is not 0. Other hosts' messages
# carry their number. Variables:
#   PORT      optional: a port, by default one that is free
#   DEVICES   optional: fake CPU devices of each host, by default the devices that JAX sees
set -euo pipefail

if [ $# -lt 2 ] || ! [[ $1 =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: launch/local_multihost.sh N --config=configs/NAME.py [FLAGS...], N from 1" >&2
  exit 2
fi
num_hosts=$1
shift

root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
command -v "$python" > /dev/null || { echo "no $python: run 'make setup' in $root first" >&2; exit 2; }
free_port='import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])'
port=${PORT:-$("$python" -c "$free_port")}
if [ -n "${DEVICES:-}" ]; then
  export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$DEVICES"
fi

hosts=()
# shellcheck disable=SC2329 # called by trap
end_all() { [ ${#hosts[@]} -eq 0 ] || kill -"$1" "${hosts[@]}" 2> /dev/null || true; }
trap 'end_all TERM' TERM INT

for ((host = num_hosts - 1; host >= 0; host--)); do
  flags=(--coordinator="127.0.0.1:$port" --num_hosts="$num_hosts" --host_index="$host")
  if [ "$host" -gt 0 ]; then
    "$python" -m gsg_jax.main "$@" "${flags[@]}" > /dev/null &
  else
    "$python" -m gsg_jax.main "$@" "${flags[@]}" &
  fi
  hosts+=($!)
done

# Host 0 is started last.
status=0
for host in "${hosts[@]}"; do
  while :; do
    this=0
    wait "$host" || this=$?
    kill -0 "$host" 2> /dev/null || break # a signal ends wait, not the host
  done
  [ "$status" -ne 0 ] || status=$this
done
exit "$status"
