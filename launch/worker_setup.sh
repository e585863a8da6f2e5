#!/usr/bin/env bash
# Makes this machine, a worker in the cloud, ready to run gsg_jax from the folder it lies in.
#   launch/worker_setup.sh EXTRA [BUCKET...]
# EXTRA is tpu or cuda. Each bucket is mounted by gcsfuse at /gcs/BUCKET. What is there already is left.
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
  # A fresh machine is still installing its own updates.
  sudo apt-get -q -o DPkg::Lock::Timeout=600 update
  sudo apt-get -q -o DPkg::Lock::Timeout=600 install -y gcsfuse
fi
for bucket in "$@"; do
  folder=/gcs/$bucket
  if ! mountpoint -q "$folder"; then
    sudo mkdir -p "$folder"
    sudo chown "$(id -u):$(id -g)" "$folder"
    # Renaming a folder commits a checkpoint: refused by default. Without the caches what one host
    # writes is seen by the others at once.
    gcsfuse --implicit-dirs --rename-dir-limit=200000 --metadata-cache-ttl-secs=0 \
      --metadata-cache-negative-ttl-secs=0 "$bucket" "$folder"
  fi
done
