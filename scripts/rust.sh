#!/usr/bin/env bash
# rust.sh: succeeds when a new enough Rust is there; else says in one line what to do.
set -euo pipefail
want=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$(dirname "$0")/../Cargo.toml")
if ! command -v cargo >/dev/null; then
    echo "Rust is missing: install version $want or newer with rustup (https://rustup.rs), then run this again" >&2
    exit 1
fi
have=$(rustc --version | awk '{print $2}')
if [ "$(printf '%s\n' "$want" "$have" | sort -V | head -1)" != "$want" ]; then
    echo "Rust $have is too old: run 'rustup update stable' to get $want or newer (https://rustup.rs)" >&2
    exit 1
fi
