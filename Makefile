# make demo   build, back up a disk full and incremental, restore it, compare: the main job in a few minutes
# make test   all tests
# make check  the whole gate: format, lints, tests, docs, tidiness
# make bench  side by side with cp, qemu-img, nbdcopy, virtnbdbackup, restic, the kernel's mounts; rewrites docs/benchmarks.md
# make soak   a simulated year: 200 machines, every day, faults at random; some of it is part of make test
# make fuzz   every fuzz target for a minute, and damaged file systems
SHELL := /bin/bash
.ONESHELL:
.SHELLFLAGS := -euo pipefail -c
.PHONY: demo demo-libvirt test check fmt lint doc tidy bench fuzz soak build release

demo: release
	scripts/deps.sh demo
	scripts/demo.sh

demo-libvirt: release
	scripts/deps.sh demo libvirt
	scripts/demo-libvirt.sh

build:
	scripts/deps.sh build
	scripts/rust.sh
	cargo build --locked

release:
	scripts/deps.sh build
	scripts/rust.sh
	cargo build --locked --release -p sendense

test:
	scripts/deps.sh build test
	scripts/rust.sh
	scripts/test.sh

check: fmt lint doc tidy test

fmt:
	cargo fmt --all -- --check
	cd fuzz && cargo fmt -- --check

# The fuzz targets stand outside of the workspace, and would stop compiling unseen.
lint:
	scripts/deps.sh build fuzz
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cd fuzz && cargo clippy --locked --all-targets -- -D warnings

# For those who read the code: with private items, to which the headers of modules lead.
doc:
	RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" cargo doc --locked --workspace --no-deps --document-private-items

tidy:
	scripts/tidy.sh

bench: release
	scripts/deps.sh bench
	bench/run.sh

fuzz:
	scripts/deps.sh build fuzz
	scripts/rust.sh
	fuzz/run.sh 60
	SENDENSE_MUTATIONS=2000 SENDENSE_MUTATION_SEED=$$(date +%s) cargo test -p sendense-guestfs --test fs_mutation

soak:
	scripts/deps.sh build
	scripts/rust.sh
	SENDENSE_YEAR_VMS=$${SENDENSE_YEAR_VMS:-200} SENDENSE_YEAR_DAYS=$${SENDENSE_YEAR_DAYS:-365} \
	    SENDENSE_YEAR_SEED=$${SENDENSE_YEAR_SEED:-$$(date +%s)} \
	    cargo test --locked --release -p sendense-hub --lib year:: -- --nocapture
