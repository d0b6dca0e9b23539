#!/usr/bin/env bash
# Asks the agent spoken questions and writes its spoken answers to demo/: what `make demo` runs.
#   demo.sh BUNDLE QUESTION.wav...
set -euo pipefail
bundle=$1
shift
[ -f "$bundle/bundle.toml" ] || { echo "demo: no bundle in $bundle ('make train' makes one in runs/nano/bundle)" >&2; exit 1; }

# --workspace: the same dependency features as the tests, so that both share what is built
echo "building sa-agent into ${CARGO_TARGET_DIR:=target} (long the first time) …"
cargo build --workspace --bin sa-agent

rm -rf demo
mkdir -p demo
arguments=()
for question; do arguments+=(--input "$question"); done
export SA_HOME_STATE=$PWD/demo/home.state
"$CARGO_TARGET_DIR/debug/sa-agent" talk --bundle "$bundle" "${arguments[@]}" --output-dir demo --tools device/examples/tools.toml
echo
echo "the spoken answers are in $PWD/demo"
