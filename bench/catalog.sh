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
python3 - "$work/vms" "$VMS" <<'X'
import os, sys
for n in range(1, int(sys.argv[2]) + 1):
    os.mkdir(f"{sys.argv[1]}/m{n}")
    with open(f"{sys.argv[1]}/m{n}/disk0.raw", "wb") as disk:
        disk.write(os.urandom(1 << 20))
X
hub_args="--running-tasks-max 8" repo_args="--running-tasks-max 8"
. bench/hub.sh
sd source update images --running-tasks-max 8 > /dev/null
sd policy create all --vm '*' --source images --repo main --keep-last 7 > /dev/null
sd schedule create all --policy all --every 365d > /dev/null
sd schedule trigger all > /dev/null
bench/catalog.py "$url" "$work/hub/admin-token" "$VMS"
