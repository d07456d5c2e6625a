#!/usr/bin/env bash
# Writes the device database of this machine to standard output: tools/device_generator.sh > devices.json
# Flags go to the program device_generator (see its --help), which is built first if it is missing.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
program=${CARGO_TARGET_DIR:-$root/target}/release/device_generator

if [[ ! -x $program ]]; then
    # Standard output belongs to the database alone. Without --package, so that cargo chooses the features that
    # `cargo build --release` has: nothing is built twice.
    cargo build --quiet --release --locked --manifest-path "$root/Cargo.toml" --bin device_generator >&2
fi
exec "$program" "$@"
