#!/usr/bin/env bash
# demo-libvirt.sh: a libvirt domain with two QCOW2 disks that writes while it is backed up, full and incremental.
#
# It uses a libvirt daemon of its own (lab/libvirt.sh), which shares nothing with the system's. The domain has no operating
# system; its writes go through QEMU's device backend, which marks dirty bitmaps as a guest's writes do. The "guest" counts:
# it writes a number to the first disk, then the same number to the second. A restored point must hold the two numbers as
# they were at one moment: equal, or the first one ahead by one.
set -euo pipefail
cd "$(dirname "$0")/.."
sendense=$(realpath "${SENDENSE:-target/release/sendense}")
export PATH=$PATH:/usr/sbin:/sbin LC_ALL=C

work=$(mktemp -d /tmp/sd-demo.XXXX) # short: sockets lie below it
hub_pid= guest_pid=
finish() {
    status=$?
    for pid in $guest_pid $hub_pid; do kill "$pid" 2>/dev/null || true; wait "$pid" 2>/dev/null || true; done
    [ ! -e "$work/lab" ] || lab/libvirt.sh stop "$work/lab" || true
    rm -rf "$work"
    [ "$status" = 0 ] || echo "the demo failed" >&2
}
trap finish EXIT
step() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
run() { printf '$ sendense %s\n' "$*"; "$sendense" "$@"; }

step "a libvirt daemon, and a running domain with two disks"
chmod 755 "$work"
uri=$(lab/libvirt.sh start "$work/lab")
images=$work/lab/images
truncate -s 2G "$work/vda.raw"
mkdir -p "$work/files/etc"
cp -r /usr/share/doc/. "$work/files/doc" 2>/dev/null || true
echo "guest.example.org" > "$work/files/etc/hostname"
mkfs.ext4 -q -d "$work/files" "$work/vda.raw" 1900M # the demo's own marks lie behind the file system
qemu-img convert -O qcow2 "$work/vda.raw" "$images/vda.qcow2"
qemu-img create -q -f qcow2 "$images/vdb.qcow2" 1T
rm "$work/vda.raw"
if [ "$(id -u)" = 0 ]; then chown --reference="$images" "$images"/*.qcow2; fi
disk() {
    echo "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='$images/$1.qcow2'/>" \
        "<target dev='$1' bus='virtio'/><alias name='ua-$1'/></disk>"
}
cat > "$work/domain.xml" <<X
<domain type='qemu'><name>guest</name><memory unit='MiB'>64</memory><os><type arch='x86_64' machine='q35'>hvm</type></os>
<devices>$(disk vda)$(disk vdb)</devices></domain>
X
virsh -q -c "$uri" define "$work/domain.xml" > /dev/null
virsh -q -c "$uri" start guest
virsh -c "$uri" list

# write DISK PATTERN OFFSET LENGTH, as the guest would
write() {
    virsh -q -c "$uri" qemu-monitor-command guest --hmp \
        "qemu-io -d /machine/peripheral/ua-$1/virtio-backend \"write -P $2 $3 $4\"" > /dev/null
}
write vdb 7 900G 64M
count_up() {
    local n=0
    while :; do
        n=$((n % 250 + 1))
        write vda "$n" 2000M 64k
        write vdb "$n" 1G 64k
    done
}
count_up &
guest_pid=$!

step "the hub"
mkdir "$work/repo" "$work/out"
"$sendense" hub --data-dir "$work/hub" --listen 127.0.0.1:0 --allow-path "$work" > "$work/hub.out" 2> "$work/hub.log" &
hub_pid=$!
for _ in $(seq 300); do
    url=$(sed -n 's/^listening on //p' "$work/hub.out")
    [ -n "$url" ] && break
    kill -0 "$hub_pid" 2>/dev/null || { cat "$work/hub.log" >&2; exit 1; }
    sleep 0.1
done
export SENDENSE_URL=$url SENDENSE_TOKEN_FILE=$work/hub/admin-token
run repo add local --name main --path "$work/repo"
run source add libvirt --name kvm --uri "$uri" --scratch "$work/lab/scratch"
run source test kvm
run source discover kvm

step "a full backup while the guest writes"
run backup start guest --repo main --type full --wait
write vda 171 1950M 8M
write vdb 172 500G 16M
step "an incremental: changed blocks only, also of the disk of 1 TiB"
run backup start guest --repo main --wait
run backup chain guest
run backup chain guest --disk 1
virsh -c "$uri" checkpoint-list guest

step "restored and compared"
faults=0
byte() { od -An -tu1 -j "$2" -N1 "$1" | tr -d ' '; }
MiB=$((1 << 20)) GiB=$((1 << 30))
for id in $("$sendense" backup chain guest --json | jq -r '.backups[].backup_id'); do
    for n in 0 1; do run restore disk "$id" --disk $n --to "$work/out/$id-$n.raw" --wait; done
    first=$(byte "$work/out/$id-0.raw" $((2000 * MiB))) second=$(byte "$work/out/$id-1.raw" "$GiB")
    if [ "$first" = "$second" ] || [ "$first" = $((second % 250 + 1)) ]; then
        echo "one moment   $id: the disks hold $first and $second"
    else
        echo "TORN         $id: the disks hold $first and $second"
        faults=1
    fi
    truncate -s 1900M "$work/out/$id-0.raw"
    e2fsck -fn "$work/out/$id-0.raw" > "$work/fsck.log" 2>&1 && echo "clean        $id: the file system" || { cat "$work/fsck.log"; faults=1; }
done
[ "$(byte "$work/out/$id-1.raw" $((500 * GiB)))" = 172 ] && [ "$(byte "$work/out/$id-1.raw" $((900 * GiB)))" = 7 ] \
    && echo "equal        what was written to the disk of 1 TiB before and between" || faults=1
du -h "$work/out"/*-1.raw | awk '{print "sparse       " $1 " on disk for 1 TiB"}'
exit $faults
