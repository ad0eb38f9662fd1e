#!/usr/bin/env bash
# run.sh SECONDS [TARGET…]: every fuzz target (or those named) for so long. Needs g++ for libFuzzer, and no nightly Rust:
# coverage comes from LLVM's own pass.
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:-60}
shift || true
command -v g++ > /dev/null || { echo "libFuzzer is C++: install the Debian package g++" >&2; exit 1; }
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table -Ccodegen-units=1 --cfg fuzzing"
host=$(rustc -vV | sed -n 's/^host: //p')
cargo build --release --target "$host"
targets=("$@")
[ "${#targets[@]}" -gt 0 ] || for file in fuzz_targets/*.rs; do targets+=("$(basename "$file" .rs)"); done
for target in "${targets[@]}"; do
    echo "== $target"
    mkdir -p "corpus/$target" artifacts
    # A memory limit far below a hub's: a parser that can be made to allocate is found here.
    "${CARGO_TARGET_DIR:-target}/$host/release/$target" "corpus/$target" -max_total_time="$seconds" -rss_limit_mb=512 -timeout=10 \
        -max_len=262144 -print_final_stats=1 -artifact_prefix=artifacts/
done
