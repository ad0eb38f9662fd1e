#!/usr/bin/env bash
# demo.sh: the main job on a real disk with a real file system, from nothing to compared checksums. Needs no root.
# Everything lies in a temporary folder, which is removed at the end (KEEP=1 keeps it).
set -euo pipefail
cd "$(dirname "$0")/.."
sendense=${SENDENSE:-target/release/sendense}
[ -x "$sendense" ] || { echo "build first: cargo build --release" >&2; exit 1; }
sendense=$(realpath "$sendense")
export PATH=$PATH:/usr/sbin:/sbin # mkfs.ext4 and debugfs, for users other than root

work=$(mktemp -d "${TMPDIR:-/tmp}/sendense-demo.XXXXXX")
hub_pid=
finish() {
    status=$?
    if [ -n "$hub_pid" ]; then kill "$hub_pid" 2>/dev/null || true; wait "$hub_pid" 2>/dev/null || true; fi
    if [ -n "${KEEP:-}" ]; then echo "kept: $work"; else rm -rf "$work"; fi
    [ "$status" = 0 ] || echo "the demo failed; the hub's last words were above" >&2
}
trap finish EXIT
step() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
run() { printf '$ sendense %s\n' "$*"; "$sendense" "$@"; }
seconds() { awk -v from="$1" -v to="$2" 'BEGIN {printf "%.2f s", to - from}'; }

step "a disk of 2 GiB with an ext4 file system and real files in it"
mkdir -p "$work"/{files/etc,files/usr/bin,vms/web,repo,out,alone}
cp -r /usr/share/doc/. "$work/files/doc" 2>/dev/null || true
find /usr/bin -maxdepth 1 -type f -size -8M -print0 | head -z -n 400 | xargs -0 cp -t "$work/files/usr/bin" 2>/dev/null || true
echo "web.example.org" > "$work/files/etc/hostname"
disk=$work/vms/web/disk0.raw
truncate -s 2G "$disk"
mkfs.ext4 -q -d "$work/files" "$disk"
du -h --apparent-size "$disk" | awk '{print "size      " $1}'
du -h "$disk" | awk '{print "allocated " $1}'

step "the hub, on the embedded defaults"
"$sendense" hub --data-dir "$work/hub" --listen 127.0.0.1:0 --allow-path "$work" > "$work/hub.out" 2> "$work/hub.log" &
hub_pid=$!
for _ in $(seq 300); do
    url=$(sed -n 's/^listening on //p' "$work/hub.out")
    [ -n "$url" ] && break
    kill -0 "$hub_pid" 2>/dev/null || { cat "$work/hub.log" >&2; exit 1; }
    sleep 0.1
done
[ -n "$url" ] || { cat "$work/hub.log" >&2; exit 1; }
echo "$url"
export SENDENSE_URL=$url SENDENSE_TOKEN_FILE=$work/hub/admin-token
run repo add local --name main --path "$work/repo"
run source add image --name images --path "$work/vms"
run source discover images

step "a full backup"
run backup start web --repo main --type full --wait
sha_first=$(sha256sum < "$disk")

step "the guest changes some files"
head -c 20000000 /dev/urandom > "$work/new.bin"
debugfs -w -R "write $work/new.bin /new.bin" "$disk" 2>/dev/null
debugfs -w -R "rm /etc/hostname" "$disk" 2>/dev/null
echo "a 20 MB file written, /etc/hostname deleted"

step "an incremental backup (images have no change tracking: every block is read and compared)"
run backup start web --repo main --wait
sha_second=$(sha256sum < "$disk")

step "the chain"
run backup chain web
chain=$("$sendense" backup chain web --json)
full=$(jq -r '.backups[0].backup_id' <<< "$chain")
incremental=$(jq -r '.backups[1].backup_id' <<< "$chain")

step "what is stored is checked: at rest, and every block decoded"
run backup verify "$full"
run backup verify "$incremental" --deep

step "both points are restored"
started=$(date +%s.%N)
run restore disk "$full" --to "$work/out/first.raw" --wait
run restore disk "$incremental" --to "$work/out/second.raw" --wait
echo "took $(seconds "$started" "$(date +%s.%N)")"

step "and once more without Sendense: the repository's folder moved away, qemu-img only"
cp -r --sparse=always "$work/repo" "$work/alone/moved"
image=$(find "$work/alone/moved" -name "$incremental.qcow2")
qemu-img check -q "$image"
qemu-img convert -O raw "$image" "$work/out/qemu.raw"

step "and without a hub"
run offline list --repo-path "$work/repo"
run offline restore --repo-path "$work/repo" "$incremental" --to "$work/out/offline.raw"

step "compared"
faults=0
compare() {
    if [ "$2" = "$3" ]; then echo "equal      $1"; else echo "DIFFERENT  $1"; faults=1; fi
}
compare "first point, restored" "$(sha256sum < "$work/out/first.raw")" "$sha_first"
compare "second point, restored" "$(sha256sum < "$work/out/second.raw")" "$sha_second"
compare "second point, by qemu-img alone" "$(sha256sum < "$work/out/qemu.raw")" "$sha_second"
compare "second point, without a hub" "$(sha256sum < "$work/out/offline.raw")" "$sha_second"
e2fsck -fn "$work/out/second.raw" > "$work/fsck.log" 2>&1 && echo "clean      the restored file system (e2fsck)" || { cat "$work/fsck.log"; faults=1; }
exit $faults
