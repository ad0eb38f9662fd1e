#!/usr/bin/env bash
# catalog.sh: a hub with 100,000 backups in its catalog, while a schedule of 5,000 machines is carried out, sixteen backups at a time.
# Prints rows for run.sh's table, writes nothing. The database lies on tmpfs; a row of the list is a call over HTTP.
#
# Every machine has the same disk, by hard links, so that it is there once; each backup is kept to a rate at which it takes half a minute, so
# that ten run at any moment. That takes some 20 MiB/s into the repository, less than 4 GiB in all.
set -euo pipefail
cd "$(dirname "$0")/.."
VMS=${VMS:-5000}
DISK_MIB=${DISK_MIB:-64}
BANDWIDTH=${BANDWIDTH:-2MiB}

. bench/common.sh "${BENCH_DIR:-/dev/shm}/sc.XXXX"
finish() { stop; rm -rf "$work"; }
trap finish EXIT

echo "filling a catalog" >&2
mkdir -p "$work"/{repo,vms,hub}
chmod 700 "$work/hub"
cargo run --locked --release -q -p sendense-catalog --example speed -- "sqlite://$work/hub/catalog.db?mode=rwc" fill >&2
bench/disk.py "$work/disk.raw" "$DISK_MIB" "$DISK_MIB"
for n in $(seq "$VMS"); do mkdir "$work/vms/m$n"; done
for n in $(seq "$VMS"); do ln "$work/disk.raw" "$work/vms/m$n/disk0.raw"; done
hub_args="--running-tasks-max 16" repo_args="--running-tasks-max 16"
. bench/hub.sh
sd source update images --running-tasks-max 16 > /dev/null
sd policy create all --vm '*' --source images --repo main --bandwidth "$BANDWIDTH" > /dev/null
sd schedule create all --policy all --every 1m > /dev/null
bench/catalog.py "$url" "$work/hub/admin-token" "$VMS"
