#!/usr/bin/env bash
# files.sh: files out of a restore point, beside the kernel's mount of the same chain. Prints rows for run.sh's table, writes nothing;
# needs root for the mounts. Everything lies on tmpfs and in the page cache; figures are medians of ROUNDS (default 5).
#
# The chain is a full and ten incrementals. The kernel gets it as an administrator would give it: qemu-storage-daemon (FUSE), a loop
# device, mount. The mount is made anew for each round, as an opened point is.
set -euo pipefail
cd "$(dirname "$0")/.."
ROUNDS=${ROUNDS:-5}
FILE_MIB=${FILE_MIB:-500}
[ "$(id -u)" = 0 ] || { echo "files.sh mounts images, which needs root" >&2; exit 1; }

. bench/common.sh "${BENCH_DIR:-/dev/shm}/sf.XXXX"
finish() {
    umount -q "$work/at" 2>/dev/null || true
    stop
    umount -q "$work/chain.raw" 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT
now() { date +%s.%N; }
note() { mkdir -p "$work/t"; awk -v a="$2" -v b="$3" 'BEGIN {print b - a}' >> "$work/t/$1"; }

# --- disks ---------------------------------------------------------------------------------------------------------------
mkdir -p "$work"/{repo,at,vms/{web,odd,dirty},t}
disk() { echo "$work/vms/$1/disk0.raw"; }
in_disk() { mount -o loop "$(disk "$1")" "$work/at"; (cd "$work/at"; eval "$2"); umount "$work/at"; }
say "making disks"
truncate -s 2G "$(disk web)"
mkfs.ext4 -q -F "$(disk web)"
# Text, which compresses three to one, and noise, which does not.
export FILE_MIB
in_disk web 'head -c $((FILE_MIB / 2))M /dev/urandom > large; seq 1 1000000000 | head -c $((FILE_MIB - FILE_MIB / 2))M >> large || true
    mkdir many; (cd many; seq -f "entry-%05g" 10000 | xargs touch)'
truncate -s 256M "$(disk odd)"
printf 'label: gpt\nsize=100M\nsize=128M\n' | sfdisk -q "$(disk odd)"
mkdir "$work/tree"; seq 1 100000 > "$work/tree/numbers"
truncate -s 128M "$work/f2fs"; mkfs.f2fs -q "$work/f2fs"; sload.f2fs -f "$work/tree" "$work/f2fs" > /dev/null
dd if="$work/f2fs" of="$(disk odd)" bs=1M seek=101 conv=notrunc status=none; rm "$work/f2fs"
# A log of the usual size, 64 MiB, as full as it gets: shut down with everything in it and nothing behind it.
truncate -s 3G "$(disk dirty)"
mkfs.xfs -q "$(disk dirty)"
mount -o loop "$(disk dirty)" "$work/at"
(cd "$work/at"; for folder in $(seq 40); do mkdir "$folder"; (cd "$folder"; seq 1500 | xargs touch); done; xfs_io -x -c "shutdown -f" .)
umount "$work/at"

# --- the hub -------------------------------------------------------------------------------------------------------------
. bench/hub.sh
api() { curl -sS --fail-with-body -H "Authorization: Bearer $(cat "$work/hub/admin-token")" "${@:2}" "$url/api/v1$1"; }
say "a full and ten incrementals of each"
for n in $(seq 0 10); do
    if [ "$n" != 0 ]; then
        in_disk web "head -c 8M /dev/urandom > new-$n; echo $n > state"
        dd if=/dev/urandom of="$(disk odd)" bs=1M count=4 seek=$((n * 8)) conv=notrunc status=none
    fi
    for vm in web odd; do sd backup start "$vm" --repo main --wait > /dev/null 2>&1; done
done
sd backup start dirty --repo main --wait > /dev/null 2>&1
newest() { sd backup list --vm "$1" --limit 1 --json | jq -r '.backups[0].backup_id'; }
web=$(newest web) odd=$(newest odd) dirty=$(newest dirty)
open() { api /restore/mount -H 'Content-Type: application/json' -d "{\"backup_id\": \"$1\"}" | jq -r .mount_id; }
close() { api "/restore/$1" -X DELETE > /dev/null; }
worker() { pgrep -n -P "$hub" -f __guestfs-worker; }
peak_mib() { awk '/VmHWM/ {print $2 / 1024}' "/proc/$1/status"; }

# --- the kernel's way ----------------------------------------------------------------------------------------------------
image=$(find "$work/repo" -name "$web.qcow2")
: > "$work/chain.raw"
qemu-storage-daemon --blockdev "driver=file,node-name=f,filename=$image,read-only=on" --blockdev driver=qcow2,node-name=d,file=f,read-only=on \
    --export "type=fuse,id=e,node-name=d,mountpoint=$work/chain.raw,growable=off" & pids+=("$!")
for _ in $(seq 100); do [ "$(stat -c %s "$work/chain.raw")" = 0 ] || break; sleep 0.05; done

# From here on the hub's peak is counted anew: what it took for the backups is another row's.
echo 5 > "/proc/$hub/clear_refs"
for round in $(seq "$ROUNDS"); do
    say "files, round $round"
    a=$(now); mount -o loop,ro,noload "$work/chain.raw" "$work/at"; ls "$work/at" > /dev/null; note kernel-open "$a" "$(now)"
    a=$(now); cat "$work/at/large" > /dev/null; note kernel-file "$a" "$(now)"
    a=$(now); ls -l "$work/at/many" > /dev/null; note kernel-list "$a" "$(now)"
    [ "$round" != 1 ] || sum=$(sha256sum < "$work/at/large")
    umount "$work/at"

    a=$(now); m=$(open "$web"); api "/restore/$m/files?path=/" > /dev/null; note open "$a" "$(now)"
    a=$(now); api "/restore/$m/download?path=/large" -o /dev/null; note file "$a" "$(now)"
    a=$(now)
    for page in $(seq 0 1000 9000); do
        echo "url = $url/api/v1/restore/$m/files?path=/many&limit=1000&offset=$page"
    done | curl -sSf -H "Authorization: Bearer $(cat "$work/hub/admin-token")" -K - > "$work/listed"
    note list "$a" "$(now)"
    [ "$(grep -o '"name":"entry-' "$work/listed" | wc -l)" = 10000 ]
    [ "$round" != 1 ] || [ "$(api "/restore/$m/download?path=/large" | sha256sum)" = "$sum" ]
    peak=$(peak_mib "$(worker)"); close "$m"

    a=$(now); m=$(open "$odd"); api "/restore/$m/files?path=/&volume=p2" > "$work/listed"; note appliance "$a" "$(now)"
    close "$m"
done
hub_peak=$(peak_mib "$hub")
a=$(now); m=$(open "$dirty"); note dirty "$a" "$(now)"
state=$(api "/restore/$m/volumes" | jq -r '.volumes[0] | .reason // .consistency')
dirty_peak=$(peak_mib "$(worker)")
close "$m"

limit_row "open a chain of full + 10 incrementals to its first listing" "$(median open)" s 1 "$(spread open); the kernel's mount of it $(printf %.2f "$(median kernel-open)") s"
limit_row "the same, a volume that the appliance reads" "$(median appliance)" s 4 "$(spread appliance)"
ratio_row "a file of $FILE_MIB MiB over HTTP — \`cat\` from the kernel's mount of the chain" file kernel-file 0.5
limit_row "list 10,000 entries with metadata over HTTP, in ten pages" "$(median list)" s 0.3 "$(spread list); \`ls -l\` on the kernel's mount $(printf %.2f "$(median kernel-list)") s"
limit_row "peak memory of the reader over this" "$peak" MiB 64
limit_row "peak memory of the hub over this" "$hub_peak" MiB 256
limit_row "peak memory of a reader that meets a full XFS log" "$dirty_peak" MiB 64 "$state, opened in $(printf %.2f "$(median dirty)") s"
