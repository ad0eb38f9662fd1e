#!/usr/bin/env bash
# run.sh [SECONDS [TARGET...]]: every fuzz target (or those named) for so long, a minute if nothing is said. Needs g++ for libFuzzer, and no nightly Rust:
# coverage comes from LLVM's own pass. What was found once is kept in corpus/, what failed in artifacts/; both are local.
# Exit code 1: a target crashed, hung or took too much memory; its input is named.
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:-60}
shift || true
command -v g++ > /dev/null || { echo "libFuzzer is C++: install the Debian package g++" >&2; exit 1; }
host=$(rustc -vV | sed -n 's/^host: //p')
flags=(
    -Cpasses=sancov-module
    -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table
    # What is compared with what: how magic numbers and keys are found.
    -Cllvm-args=-sanitizer-coverage-trace-compares
    -Ccodegen-units=1
    --cfg fuzzing
)
# With --target the flags are not given to build scripts, which could not be linked with them.
RUSTFLAGS="${RUSTFLAGS:-} ${flags[*]}" cargo build --locked --release --target "$host"
programs="${CARGO_TARGET_DIR:-target}/$host/release"
targets=("$@")
[ "${#targets[@]}" -gt 0 ] || for file in fuzz_targets/*.rs; do targets+=("$(basename "$file" .rs)"); done
failed=()
for target in "${targets[@]}"; do
    echo "== $target"
    mkdir -p "corpus/$target" "artifacts/$target"
    # A memory limit far below a hub's and a time limit far above an honest input's: a parser that can be made to allocate or
    # to loop is found here. 512 KiB: a whole image of ours with 64 KiB clusters.
    options=(-max_total_time="$seconds" -rss_limit_mb=512 -malloc_limit_mb=64 -timeout=10 -max_len=524288
        -print_final_stats=1 -artifact_prefix="artifacts/$target/")
    [ ! -e "$target.dict" ] || options+=(-dict="$target.dict")
    log="artifacts/$target.log"
    if SENDENSE_FUZZ_SEEDS="$PWD/corpus/$target" "$programs/$target" "${options[@]}" "corpus/$target" > "$log" 2>&1; then
        # What the seeds covered, what is covered now, how fast it went.
        grep -E '^#[0-9]+\s+(INITED|DONE)|^stat::(average_exec|peak_rss)' "$log"
    else
        failed+=("$target")
        grep -vE '^#[0-9]+\s+(NEW|REDUCE|RELOAD|pulse)' "$log" | tail -n 60 >&2
    fi
done
for target in ${failed[@]+"${failed[@]}"}; do
    echo "FAILED: $target (artifacts/$target.log). To run it again on what failed:" >&2
    find "$PWD/artifacts/$target" -type f -printf "    $programs/$target %p\n" >&2
done
[ "${#failed[@]}" -eq 0 ]
