#!/usr/bin/env bash
# Pretrains as a managed spot job of SkyPilot (launch/skypilot.yaml).
#   launch/skypilot.sh [--dry-run] [SKY FLAGS... --] [--config.a.b=v ...]
#   WORKDIR=gs://bucket/runs/one launch/skypilot.sh --gpus=tpu-v6e-16 -- --config.run.seed=1
# Variables:
#   WORKDIR    gs://BUCKET/PATH, the folder of the run
#   CONFIG     optional: configs/NAME.py[:RECIPE], by default configs/simsiam_gsg.py
#   DATA_DIR   optional: --config.data.dir, gs://BUCKET/PATH in the same bucket, or a path on the machines
# `sky jobs queue` and `sky jobs logs` show its state, `sky jobs cancel` ends it.
set -euo pipefail
launch=$(cd "$(dirname "$0")" && pwd)
. "$launch/commands.sh"
. "$launch/buckets.sh"

read_arguments "$@"
split_flags
need WORKDIR
need_bucket WORKDIR
bucket=$(bucket_of "$WORKDIR")
other=$(bucket_of "${DATA_DIR:-}")
[ -z "$other" ] || [ "$other" = "$bucket" ] ||
  refuse "DATA_DIR is in the bucket $other, but only WORKDIR's bucket, $bucket, is mounted: copy the data there"

# The job reads one flag a line, so that no shell splits them on the way.
[ -z "${DATA_DIR:-}" ] || flags=("--config.data.dir=$(mounted "$DATA_DIR")" ${flags[@]+"${flags[@]}"})
lines=""
for flag in ${flags[@]+"${flags[@]}"}; do
  [[ $flag != *$'\n'* ]] || refuse "$(quoted "$flag") has a line break, which cannot be passed on: remove it"
  lines="$lines$flag"$'\n'
done

run cd "$launch/.."
run sky jobs launch --yes --detach-run "--env=BUCKET=$bucket" "--env=WORKDIR=$(mounted "$WORKDIR")" \
  "--env=CONFIG=${CONFIG:-configs/simsiam_gsg.py}" "--env=FLAGS=$lines" \
  ${first[@]+"${first[@]}"} launch/skypilot.yaml
