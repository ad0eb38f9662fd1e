#!/usr/bin/env bash
# catalog.sh: a hub with 100,000 backups in its catalog, while a policy of 5,000 machines is carried out, eight backups at a time.
# Prints rows for run.sh's table, writes nothing. The database lies on tmpfs; a row of the list is a call over HTTP.
set -euo pipefail
cd "$(dirname "$0")/.."
sendense=$(realpath "${SENDENSE:-target/release/sendense}")
VMS=${VMS:-5000}
export LC_ALL=C

work=$(mktemp -d "${BENCH_DIR:-/dev/shm}/sc.XXXX")
pids=()
finish() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; wait "$pid" 2>/dev/null || true; done
    rm -rf "$work"
}
trap finish EXIT

echo "filling a catalog" >&2
mkdir -p "$work"/{repo,vms,hub}
chmod 700 "$work/hub"
cargo run --locked --release -q -p sendense-catalog --example speed -- "sqlite://$work/hub/catalog.db?mode=rwc" fill >&2
for n in $(seq "$VMS"); do
    mkdir "$work/vms/m$n"
    head -c 1M /dev/urandom > "$work/vms/m$n/disk0.raw"
done
hub_args="--running-tasks-max 8"
. bench/hub.sh
sd repo update main --running-tasks-max 8 > /dev/null
sd source update images --running-tasks-max 8 > /dev/null
sd policy create all --vm '*' --source images --repo main --keep-last 7 > /dev/null
sd schedule create all --policy all --every 365d > /dev/null
sd schedule trigger all > /dev/null
bench/catalog.py "$url" "$work/hub/admin-token" "$VMS"
