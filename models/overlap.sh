#!/usr/bin/env bash
# The detector of a user who speaks over the agent: simulates rooms, trains, and puts the weights into the device's source. Goes on where it
# was stopped; a quarter of an hour on two cores.
#   models/overlap.sh CORPUS [RUN_FOLDER]        the corpus of `make train`: runs/nano/corpus
set -euo pipefail
cd "$(dirname "$0")/.."
corpus=${1:?usage: models/overlap.sh CORPUS [RUN_FOLDER]}
run=${2:-runs/overlap}
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}
cargo build --workspace --bins
bin=$CARGO_TARGET_DIR/debug

"$bin/rooms" "$corpus" --output "$run/rooms" --rooms 170 --seed 31 &
"$bin/rooms" "$corpus" --output "$run/rooms" --rooms 70 --seed 32 --usual
wait $!
"$bin/sa-align" overlap --corpus "$run/rooms" --output "$run/training" --steps "${STEPS:-4000}"
cp "$run/training/checkpoint/model.safetensors" device/src/hearing/overlap.safetensors.partial
mv device/src/hearing/overlap.safetensors.partial device/src/hearing/overlap.safetensors
cargo build --workspace --bins
"$bin/rooms" "$corpus" --split test --rooms 40 --seed 9
