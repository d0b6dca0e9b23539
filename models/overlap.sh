#!/usr/bin/env bash
# The detector of a user who speaks over the agent: simulates rooms, trains, and puts the weights into the device's source. Goes on where it
# was stopped; half an hour on two cores.
#   models/overlap.sh CORPUS [RUN_FOLDER]        the corpus of `make train`: runs/nano/corpus
# STEPS=200 models/overlap.sh … trains less (as long as `sa-align overlap` where empty).
set -euo pipefail
cd "$(dirname "$0")/.."
corpus=${1:?usage: models/overlap.sh CORPUS [RUN_FOLDER]}
run=${2:-runs/overlap}
STEPS=${STEPS:-}
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}
cargo build --workspace --bins
bin=$CARGO_TARGET_DIR/debug

# Rooms and training have the hash of what they are made of in their names, so that nothing older is taken for them. Of the sources, for the
# program has the weights in it that are made here.
hash_of() { cat "$@" | sha256sum | head -c 12; }
room=(tests/src/bin/rooms.rs tests/src/room.rs device/src/hearing/{overlap,echo,canceller}.rs device/src/audio/live/{sim,callback,port}.rs models/src/corpus/augment.rs)
rooms=$run/rooms-$(hash_of "${room[@]}" "$corpus/manifest.json")
training=$run/training-$(hash_of <(echo "${rooms##*/}") models/src/overlap/*.rs)

"$bin/rooms" "$corpus" --output "$rooms" --rooms 340 --seed 31 &
trap 'kill $! 2>/dev/null || :' EXIT
"$bin/rooms" "$corpus" --output "$rooms" --rooms 140 --seed 32 --usual
wait $!
trap - EXIT
"$bin/sa-align" overlap --corpus "$rooms" --output "$training" ${STEPS:+--steps "$STEPS"}
cp "$training/checkpoint/model.safetensors" device/src/hearing/overlap.safetensors.partial
mv device/src/hearing/overlap.safetensors.partial device/src/hearing/overlap.safetensors
cargo build --workspace --bins
"$bin/rooms" "$corpus" --split test --rooms 40 --seed 9
