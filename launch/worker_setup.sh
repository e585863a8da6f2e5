#!/usr/bin/env bash
# Prepares this machine, a worker in the cloud, to run gsg_jax from this folder.
#   launch/worker_setup.sh EXTRA [BUCKET...]
# EXTRA is tpu or cuda. gcsfuse mounts each bucket at /gcs/BUCKET. Steps already done are skipped.
set -euo pipefail
cd "$(dirname "$0")/.."

[ $# -gt 0 ] || { echo "usage: launch/worker_setup.sh EXTRA [BUCKET...]" >&2; exit 2; }
extra=$1
shift

# TPU images come with Python 3.10; gsg_jax needs 3.11.
python=python3
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  "$python" -m pip install -q --user uv
  "$python" -m uv python install -q 3.12
  python=$("$python" -m uv python find 3.12)
fi
make setup PYTHON="$python"
.venv/bin/pip install -q -e ".[$extra]"

[ $# -gt 0 ] || exit 0
if ! command -v gcsfuse >/dev/null; then
  repository="https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -c -s) main"
  key=/usr/share/keyrings/cloud.google.asc
  curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] $repository" | sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  # A fresh machine may still be installing its own updates.
  sudo apt-get -q -o DPkg::Lock::Timeout=600 update
  sudo apt-get -q -o DPkg::Lock::Timeout=600 install -y gcsfuse
fi
for bucket in "$@"; do
  folder=/gcs/$bucket
  if ! mountpoint -q "$folder"; then
    sudo mkdir -p "$folder"
    sudo chown "$(id -u):$(id -g)" "$folder"
    # A rename of a folder commits a checkpoint, and gcsfuse refuses it by default. Without the caches the
    # other hosts see at once what one writes.
    gcsfuse --implicit-dirs --rename-dir-limit=200000 --metadata-cache-ttl-secs=0 \
      --metadata-cache-negative-ttl-secs=0 "$bucket" "$folder"
  fi
done
