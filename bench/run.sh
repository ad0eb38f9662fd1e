#!/usr/bin/env bash
# run.sh: Sendense beside its peers on one machine, and docs/benchmarks.md written from it.
#
# Everything lies on tmpfs and in the page cache: the programs are compared, not the disk. Each round runs every side once,
# one after the other, so that a neighbour's noise meets all; figures are medians of ROUNDS (default 5), and what counts is
# the ratio. Sides whose program is missing are named, not left out.
set -euo pipefail
cd "$(dirname "$0")/.."
top=$PWD
ROUNDS=${ROUNDS:-5}
SIZE_MIB=${SIZE_MIB:-8192} DATA_MIB=${DATA_MIB:-3072}
# all, or words of: raw zstd incremental restore onto export verify merge clone libvirt vsphere memory files catalog. The rows of the others stay in the table as they are.
ONLY=${ONLY:-all}

. bench/common.sh "${BENCH_DIR:-/dev/shm}/sd.XXXX"
finish() {
    stop
    [ ! -e "$work/lab" ] || lab/libvirt.sh stop "$work/lab" || true
    [ -n "${KEEP:-}" ] || rm -rf "$work"
}
trap finish EXIT
wants() { [ "$ONLY" = all ] || [[ " $ONLY " == *" $1 "* ]]; }

# --- measuring -----------------------------------------------------------------------------------------------------------
# time_one GROUP SIDE COMMAND: runs it once under hyperfine, adds the seconds to $work/t/GROUP/SIDE.
time_one() {
    mkdir -p "$work/t/$1"
    hyperfine --style none --runs 1 --shell bash --export-json "$work/t.json" "$3" > "$work/last.out" 2>&1 \
        || { cat "$work/last.out" >&2; say "FAILED: $3"; exit 1; }
    jq -r '.results[0].times[0]' "$work/t.json" >> "$work/t/$1/$2"
}
rows=()
# row GROUP OURS SIDE TEXT TARGET: a line of the table; the ratio is SIDE / OURS and must reach TARGET.
row() { rows+=("$(ratio_row "$4" "$1/$2" "$1/$3" "$5")"); say "${rows[-1]}"; }
limit() { rows+=("$(limit_row "$@")"); say "${rows[-1]}"; }

# --- the hub -------------------------------------------------------------------------------------------------------------
mkdir -p "$work"/{repo,vms/web,out,t}
say "making a disk of $SIZE_MIB MiB with $DATA_MIB MiB of data"
disk=$work/vms/web/disk0.raw
bench/disk.py "$disk" "$SIZE_MIB" "$DATA_MIB"
# The first touch of memory is several times slower than the second: fill what the runs will need, and free it.
warm() { head -c "$((DATA_MIB * 2))M" /dev/zero > "$work/warm" && rm "$work/warm"; }
warm
. bench/hub.sh
newest() { sd backup list --vm "$1" --limit 1 --json | jq -r '.backups[0].backup_id'; }
drop_newest() { sd backup delete "$(newest "$1")" --yes > /dev/null 2>&1; }
full() { echo "$sendense backup start $1 --repo main --type full --compression $2 --wait"; }

# serve NAME ARGS…: qemu-nbd in the background, on $work/NAME.sock
serve() {
    local name=$1; shift
    qemu-nbd -t -e 8 -k "$work/$name.sock" "$@" & pids+=("$!"); echo "$!" > "$work/$name.pid"
    for _ in $(seq 200); do [ -S "$work/$name.sock" ] && return; sleep 0.05; done
}
unserve() { kill "$(cat "$work/$1.pid")"; wait "$(cat "$work/$1.pid")" 2>/dev/null || true; rm -f "$work/$1.sock"; }

if wants raw; then
    for round in $(seq "$ROUNDS"); do
        say "raw, round $round"
        time_one raw ours "$(full web off)"; drop_newest web
        time_one raw qemu "qemu-img convert -T none -W -m 16 -O qcow2 $disk $work/out/q.qcow2"; rm "$work/out/q.qcow2"
        time_one raw cp "cp --sparse=always $disk $work/out/c.raw"; rm "$work/out/c.raw"
        for connections in 4 1; do
            qemu-img create -q -f qcow2 "$work/out/n.qcow2" "${SIZE_MIB}M"
            serve from -r --format=raw "$disk"; serve to --format=qcow2 "$work/out/n.qcow2"
            time_one raw "nbdcopy$connections" "nbdcopy -C $connections 'nbd+unix:///?socket=$work/from.sock' 'nbd+unix:///?socket=$work/to.sock'"
            unserve from; unserve to; rm "$work/out/n.qcow2"
        done
    done
    row raw ours qemu "full, compression off — \`qemu-img convert -W -m 16\`" 1
    row raw ours cp "full, compression off — \`cp --sparse=always\`" 1
    row raw ours nbdcopy4 "full, compression off — \`nbdcopy\`, qemu-nbd to qemu-nbd" 3
    row raw ours nbdcopy1 "full, compression off — \`nbdcopy -C 1\`" 2
fi

if wants zstd; then
    for round in $(seq "$ROUNDS"); do
        say "zstd, round $round"
        time_one zstd ours "$(full web default)"
        ours_bytes=$(sd backup show "$(newest web)" --json | jq '.backup.bytes_stored'); drop_newest web
        time_one zstd qemu "qemu-img convert -T none -c -W -m 8 -O qcow2 -o compression_type=zstd $disk $work/out/q.qcow2"
        qemu_bytes=$(stat -c %s "$work/out/q.qcow2"); rm "$work/out/q.qcow2"
        if [ "$round" -le 2 ]; then
            RESTIC_PASSWORD=x restic -q -r "$work/out/restic" init > /dev/null
            RESTIC_PASSWORD=x time_one zstd restic "restic -q -r $work/out/restic --no-cache backup $disk"
            rm -rf "$work/out/restic"
        fi
    done
    row zstd ours qemu "full, zstd default — \`qemu-img convert -c -m 8\`, zstd" 1.8
    row zstd ours restic "full, zstd default — restic (deduplicates and encrypts too)" 1
    limit "size of that full beside qemu-img's" "$(awk -v a="$ours_bytes" -v b="$qemu_bytes" 'BEGIN {print 100 * a / b}')" "%" 105
fi

if wants incremental; then
    sd backup start web --repo main --type full --compression off --wait > /dev/null
    serve from -r --format=raw "$disk"
    for round in $(seq "$ROUNDS"); do
        say "incremental without tracking, round $round"
        dd if=/dev/urandom of="$disk" bs=1M count=8 seek=$((round * 16)) conv=notrunc status=none
        time_one compare ours "$sendense backup start web --repo main --wait"; drop_newest web
        time_one compare nbdcopy "nbdcopy 'nbd+unix:///?socket=$work/from.sock' null:"
    done
    unserve from
    row compare ours nbdcopy "incremental without tracking — \`nbdcopy SOURCE null:\`" 0.83
    drop_newest web
fi

# A full and three incrementals of 64 MiB each, in pieces of 1 MiB; sets id and image of the newest point.
chain() {
    sd backup start web --repo main --type full --wait > /dev/null
    for n in 1 2 3; do
        for at in $(seq 64); do
            dd if=/dev/urandom of="$disk" bs=1M count=1 seek=$(((at * 113 + n * 37) % (SIZE_MIB - 1))) conv=notrunc status=none
        done
        sd backup start web --repo main --wait > /dev/null
    done
    id=$(newest web)
    image=$(find "$work/repo" -name "$id.qcow2")
}
drop_chain() { sd backup delete "$(sd backup chain web --json | jq -r '.backups[0].backup_id')" --cascade --yes > /dev/null 2>&1; }

if wants restore; then
    chain
    for round in $(seq "$ROUNDS"); do
        say "restore, round $round"
        time_one restore ours "$sendense restore disk $id --to $work/out/o.raw --wait"
        time_one restore qemu "qemu-img convert -W -O raw $image $work/out/q.raw"
        [ "$round" != 1 ] || cmp "$work/out/o.raw" "$disk"
        rm "$work/out/o.raw" "$work/out/q.raw"
    done
    row restore ours qemu "restore of full + 3 incrementals — \`qemu-img convert -W\`" 1
    drop_chain
fi

if wants onto; then
    chain
    target=$work/out/o.raw
    sd restore disk "$id" --to "$target" --wait > /dev/null
    for round in $(seq "$ROUNDS"); do
        say "differential restore, round $round"
        time_one onto ours "$sendense restore disk $id --onto $target --wait"
        time_one onto cat "cat $target > /dev/null"
        time_one onto b2sum "b2sum $target"
    done
    cmp "$target" "$disk"
    rm "$target"
    row onto ours cat "differential restore with nothing to change — \`cat\` of the target" 1
    row onto ours b2sum "the same — \`b2sum\` of the target (BLAKE2, one thread)" 1
    drop_chain
fi

if wants export; then
    chain
    export=$(sd export "$id" --json | jq -r '.export.export_id') uri=$(sd exports --json | jq -r '.exports[0].uri')
    serve chain -r --format=qcow2 "$image"
    # The same bytes, before anybody is praised for speed.
    qemu-img compare -f raw -F raw "$uri" "$disk" > /dev/null
    for round in $(seq "$ROUNDS"); do
        say "export, round $round"
        for connections in 4 1; do
            time_one "export$connections" ours "nbdcopy -C $connections '$uri' null:"
            time_one "export$connections" qemu "nbdcopy -C $connections 'nbd+unix:///?socket=$work/chain.sock' null:"
        done
    done
    unserve chain
    sd unexport "$export" 2> /dev/null
    row export4 ours qemu "NBD export of full + 3 incrementals, zstd, \`nbdcopy URI null:\` — \`qemu-nbd -r\` of the same chain" 1.5
    row export1 ours qemu "the same over one connection (\`nbdcopy -C 1\`)" 1
    drop_chain
fi

if wants verify; then
    chain
    files=$(find "$work/repo" -path '*/disk-0/*' -type f | tr '\n' ' ')
    for round in $(seq "$ROUNDS"); do
        say "verification, round $round"
        time_one rest ours "$sendense backup verify $id"
        time_one rest cat "cat $files > /dev/null"
        time_one deep ours "$sendense backup verify $id --deep"
        time_one deep qemu "qemu-img convert -n -W --target-image-opts $image driver=null-co,size=${SIZE_MIB}M"
    done
    row rest ours cat "verification at rest of full + 3 incrementals — \`cat\` of the same files" 0.9
    row deep ours qemu "deep verification of the same, every block of every point — \`qemu-img convert -W\` of the newest to null" 1.5
    drop_chain
fi

if wants merge; then
    for round in $(seq "$ROUNDS"); do
        say "merge, round $round"
        chain
        first=$(sd backup chain web --json | jq -r '.backups[0].backup_id')
        second=$(sd backup chain web --json | jq -r '.backups[1].backup_id')
        warm
        time_one merge ours "$sendense backup merge $first --yes"
        kept=$(find "$work/repo" -name "$second.*" -path '*/disk-0/*' | tr '\n' ' ')
        warm
        time_one merge cp "cp --reflink=never $kept $work/out/"; rm "$work/out/$second".*
        warm
        # What a merge does besides: what was copied is compared, and the old files go.
        cp --reflink=never $kept "$work/out/"
        mkdir "$work/out/new"
        time_one merge proved "cp --reflink=never $kept $work/out/new/ && (cd $work/out && for f in $second.*; do cmp \$f new/\$f && rm \$f; done)"
        rm -r "$work/out/new"
        drop_chain
    done
    row merge ours cp "merging a full into its successor, by copy, read back and checked — \`cp\` of the bytes kept" 1
    row merge ours proved "the same — \`cp\`, \`cmp\` and \`rm\` of the old files" 1
fi

if wants clone; then
    if [ "$(id -u)" = 0 ]; then
        SENDENSE=$sendense bench/clone.sh > "$work/last.out"
        mapfile -t -O "${#rows[@]}" rows < "$work/last.out"
    else
        say "clone: left out, because mounts need root"
    fi
fi

if wants libvirt; then
    uri=$("$top/lab/libvirt.sh" start "$work/lab")
    images=$work/lab/images
    qemu-img convert -O qcow2 "$disk" "$images/live.qcow2"
    qemu-img create -q -f qcow2 "$images/huge.qcow2" 1T
    [ "$(id -u)" != 0 ] || chown --reference="$images" "$images"/*.qcow2
    for vm in live huge; do
        virsh -q -c "$uri" define /dev/stdin > /dev/null <<X
<domain type='qemu'><name>$vm</name><memory unit='MiB'>64</memory><os><type arch='x86_64' machine='q35'>hvm</type></os>
<devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='$images/$vm.qcow2'/>
<target dev='vda' bus='virtio'/><alias name='ua-vda'/></disk></devices></domain>
X
        virsh -q -c "$uri" start "$vm"
    done
    sd source add libvirt --name kvm --uri "$uri" --scratch "$work/lab/scratch" --scratch-floor 64MiB > /dev/null 2>&1
    sd source discover kvm > /dev/null 2>&1
    # 64 pieces of 1 MiB, as the guest writes them: change VM FIRST_MIB STEP_MIB
    change() {
        for n in $(seq 64); do
            virsh -q -c "$uri" qemu-monitor-command "$1" --hmp \
                "qemu-io -d /machine/peripheral/ua-vda/virtio-backend \"write -P $(((n + $2) % 255 + 1)) $(($2 + n * $3))M 1M\"" > /dev/null
        done
    }
    vnb() { echo "virtnbdbackup -U '$uri' -d live -l copy ${1:-} -o $work/out/vnb --scratchdir $work/lab/scratch --socketfile $work/lab/scratch/vnb.sock"; }
    for round in $(seq "$ROUNDS"); do
        say "libvirt full, round $round"
        time_one live ours "$(full live off)"; drop_newest live
        time_one live ourszstd "$(full live default)"; drop_newest live
        if command -v virtnbdbackup > /dev/null; then
            time_one live virtnbdbackup "$(vnb)"; rm -rf "$work/out/vnb"
            time_one live virtnbdlz4 "$(vnb --compress)"; rm -rf "$work/out/vnb"
        fi
    done
    if [ -e "$work/t/live/virtnbdbackup" ]; then
        row live ours virtnbdbackup "full of a live libvirt domain, compression off — virtnbdbackup" 2.5
        row live ourszstd virtnbdlz4 "full of a live libvirt domain, zstd default — virtnbdbackup \`--compress\` (lz4)" 2.5
    else
        rows+=("| full of a live libvirt domain — virtnbdbackup | $(median live/ours) s | virtnbdbackup is not installed | | 2.5 | **not measured** |")
    fi
    for vm in live huge; do sd backup start "$vm" --repo main --type full --wait > /dev/null; done
    for round in $(seq "$ROUNDS"); do
        say "libvirt incremental, round $round"
        change live "$((round * 3))" 100
        time_one tracked live "$sendense backup start live --repo main --wait"
        change huge "$((round * 1000))" 9000
        time_one tracked huge "$sendense backup start huge --repo main --wait"
    done
    limit "incremental with tracking, 64 MiB in 1 MiB pieces, request to published" "$(median tracked/live)" s 1
    limit "the same on a sparse disk of 1 TiB" "$(median tracked/huge)" s 1
fi

if wants vsphere; then
    say "vSphere: the lab's vCenter, the real nbdkit, a VDDK of the lab's"
    bench/disk.py "$work/bulk.raw" "$((SIZE_MIB / 2))" "$((DATA_MIB / 2))"
    mkdir -p "$work/vs" "$work/t/vsphere"
    TMPDIR=$work/vs SENDENSE_BENCHED=$sendense SENDENSE_BULK_DISK=$work/bulk.raw \
        cargo test --locked -q -p sendense --test e2e vsphere_bulk -- --nocapture --test-threads 1 > "$work/last.out"
    # The test runner puts its own words before the first figure.
    for side in ours nbdcopy; do grep -o "$side [0-9.]*\$" "$work/last.out" | cut -d' ' -f2 > "$work/t/vsphere/$side"; done
    row vsphere ours nbdcopy "full of a vSphere machine through nbdkit, compression off — \`nbdcopy\` of the same export to a raw file" 1
    limit "peak memory of hub and node, eight disks of a vSphere machine at once" "$(grep -o 'peak [0-9]*\$' "$work/last.out" | cut -d' ' -f2)" MiB 256
    rm -rf "$work/bulk.raw" "$work/vs"
fi

if wants memory; then
    say "memory, four backups at once"
    for n in 1 2 3; do mkdir -p "$work/vms/copy$n"; ln "$disk" "$work/vms/copy$n/disk0.raw"; done
    sd source discover images > /dev/null 2>&1
    waits=()
    for vm in web copy1 copy2 copy3; do
        sd backup start "$vm" --repo main --type full --compression high --wait > /dev/null & waits+=("$!")
    done
    for pid in "${waits[@]}"; do wait "$pid"; done
    limit "peak memory of the hub over all of this, four backups at once" "$(awk '/VmHWM/ {print $2 / 1024}' "/proc/$hub/status")" MiB 256
fi

if wants files; then
    if [ "$(id -u)" = 0 ]; then
        ROUNDS=$ROUNDS SENDENSE=$sendense bench/files.sh > "$work/last.out"
        mapfile -t -O "${#rows[@]}" rows < "$work/last.out"
    else
        say "files: left out, because the kernel's mounts need root"
    fi
fi

if wants catalog; then
    SENDENSE=$sendense bench/catalog.sh > "$work/last.out"
    mapfile -t -O "${#rows[@]}" rows < "$work/last.out"
fi

# The new rows, and where not all was measured, those of the file that nothing new was measured for, in their place.
table() {
    printf '%s\n' "${rows[@]}" > "$work/rows"
    if [ "$ONLY" = all ] || [ ! -e "$OUT" ]; then cat "$work/rows"; return; fi
    awk -F ' [|] ' 'NR == FNR {fresh[$1] = $0; order[++n] = $1; next}
        /^[|] / && !/^[|] work / {if ($1 in fresh) {print fresh[$1]; delete fresh[$1]} else print}
        END {for (i = 1; i <= n; i++) if (order[i] in fresh) print fresh[order[i]]}' "$work/rows" "$OUT"
}
OUT=${OUT:-docs/benchmarks.md}
table > "$work/table"
{
    cat <<X
# Benchmarks

Made by \`make bench\`; do not edit. $(nproc) cores ($(sed -n 's/^model name\s*: //p' /proc/cpuinfo | head -1)), everything on tmpfs and in
the page cache, a disk of $((SIZE_MIB / 1024)) GiB with $((DATA_MIB / 1024)) GiB of data, half noise, half text. Medians (and range) of $ROUNDS rounds; in each
round every side ran once, one after the other. Ours is measured at the command line, from the request to the published point,
digests included. $(qemu-img --version | head -1); restic $(restic version 2>/dev/null | awk '{print $2}').

| work — beside | Sendense | peer | ratio | target | |
|---|---|---|---|---|---|
X
    cat "$work/table"
} > "$OUT"
say "written: $OUT"
