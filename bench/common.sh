# Sourced with a template for mktemp: gives $sendense, the binary that is measured; $work, a new folder, and $pids, what runs in the background.
# Both are for the script to clean up. Figures lie in files below $work/t, one a line; rows are those of run.sh's table.
export PATH=$PATH:/usr/sbin:/sbin LC_ALL=C
sendense=$(realpath "${SENDENSE:-target/release/sendense}")
work=$(mktemp -d "$1")
chmod 755 "$work"
pids=()
stop() { for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; wait "$pid" 2>/dev/null || true; done; pids=(); }
say() { echo "$*" >&2; }
median() { sort -g "$work/t/$1" | awk '{v[NR] = $1} END {print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2}'; }
spread() { sort -g "$work/t/$1" | awk 'NR == 1 {a = $1} {b = $1} END {printf "%.2f–%.2f", a, b}'; }
limit_row() { # limit_row TEXT VALUE UNIT LIMIT [NOTE]
    awk -v t="$1" -v v="$2" -v u="$3" -v l="$4" -v n="${5:+ ($5)}" \
        'BEGIN {printf "| %s | %.2f %s%s | | | at most %s %s | %s |\n", t, v, u, n, l, u, (v <= l ? "met" : "**not met**")}'
}
ratio_row() { # ratio_row TEXT OURS THEIRS TARGET: figures of the same work; the ratio is THEIRS / OURS and must reach TARGET
    local ours theirs
    ours=$(median "$2") && theirs=$(median "$3") || return 1
    awk -v t="$1" -v o="$ours" -v os="$(spread "$2")" -v x="$theirs" -v xs="$(spread "$3")" -v w="$4" \
        'BEGIN {r = x / o; printf "| %s | %.2f s (%s) | %.2f s (%s) | %.2f | %s | %s |\n", t, o, os, x, xs, r, w, (r >= w ? "met" : "**not met**")}'
}
