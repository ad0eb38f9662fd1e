#!/usr/bin/env bash
# tidy.sh: what the compiler does not see. Prints every fault, then fails.
set -euo pipefail
cd "$(dirname "$0")/.."
faults=0
fault() { echo "tidy: $*"; faults=$((faults + 1)); }
files() { git ls-files --cached --others --exclude-standard -- "$@"; }

# A stub, an ignored test: a promise that nobody keeps.
while IFS= read -r line; do fault "stub: $line"; done \
    < <(files '*.rs' | xargs grep -nE 'todo!\(|unimplemented!\(|#\[ignore' 2>/dev/null || true)
# One noun per file.
while read -r lines name; do
    if [ "$lines" -gt 700 ]; then fault "$name has $lines lines: is there a second noun in it?"; fi
done < <(files '*.rs' | xargs wc -l | awk '$2 != "total" {print $1, $2}')
# Every crate takes the workspace's lints.
for manifest in crates/*/Cargo.toml; do
    grep -A1 '^\[lints\]' "$manifest" | grep -q '^workspace = true' || fault "$manifest does not take the workspace's lints"
done
# Imports go only downward. Dev-dependencies may reach anywhere.
allowed() {
    case "$1" in
        sendense-types | sendense-block) echo ;;
        sendense-qcow2 | sendense-vsphere) echo sendense-block ;;
        sendense-source) echo sendense-types sendense-block sendense-qcow2 sendense-vsphere ;;
        sendense-repo) echo sendense-types sendense-block sendense-qcow2 ;;
        sendense-catalog | sendense-api) echo sendense-types ;;
        sendense-guestfs) echo sendense-types sendense-block ;;
        sendense-node) echo sendense-types sendense-block sendense-source sendense-api ;;
        sendense-hub) echo sendense-types sendense-block sendense-qcow2 sendense-source sendense-repo sendense-catalog sendense-api sendense-guestfs sendense-node ;;
        sendense) echo '*' ;;
        *) echo "tidy: crate $1 has no place in the house (scripts/tidy.sh, ARCHITECTURE.md)" >&2; echo ;;
    esac
}
for manifest in crates/*/Cargo.toml; do
    crate=$(basename "$(dirname "$manifest")")
    may=$(allowed "$crate")
    [ "$may" = '*' ] && continue
    for import in $(sed -n '/^\[dependencies\]/,/^\[/p' "$manifest" | grep -oE '^sendense[a-z0-9-]*' || true); do
        [[ " $may " == *" $import "* ]] || fault "$crate imports $import"
    done
done
# One TLS and crypto stack, and no OpenSSL.
if grep -qE '^name = "(aws-lc-rs|aws-lc-sys|openssl-sys|native-tls)"' Cargo.lock; then
    fault "Cargo.lock holds aws-lc, OpenSSL or native-tls; ring and rustls are the choice"
fi
# Nothing that belongs to one machine, no keys.
while IFS= read -r line; do fault "key in the tree: $line"; done \
    < <(files | xargs grep -lE -e '^-----BEGIN ([A-Z]+ )?PRIVATE KEY' 2>/dev/null || true)
for file in README.md ARCHITECTURE.md LICENSE Makefile .ci/run; do [ -e "$file" ] || fault "missing $file"; done
[ "$faults" -eq 0 ] && echo "tidy: nothing to say" || exit 1
