#!/usr/bin/env bash
# All tests: the Rust workspace, then those that listen to speech; one closing line with the counts. With SA_TEST_ALL=1 (CI) no test may
# be left out.
set -uo pipefail
cd "$(dirname "$0")/.."
SA_CACHE=${SA_CACHE:-${HOME:-/var/tmp}/.cache/sa}
PYTHON=$SA_CACHE/judge-venv/bin/python
ONNX_PYTHON=$SA_CACHE/onnx-venv/bin/python
REFERENCE_PYTHON=$SA_CACHE/reference-venv/bin/python
# The second engine's library is no part of the repository: one that is named, or the one inside the Python wheel.
if [ -z "${SA_ORT_LIBRARY:-}" ]; then
  SA_ORT_LIBRARY=$(ls "$SA_CACHE"/onnx-venv/lib/python3*/site-packages/onnxruntime/capi/libonnxruntime.so.1.* 2>/dev/null | head -n 1)
fi
# onnx.checker for what the tests export
[ ! -x "$ONNX_PYTHON" ] || export SA_ONNX_PYTHON=$ONNX_PYTHON
log=$(mktemp)
scratch=$(mktemp -d)
trap 'rm -rf "$log" "$scratch"' EXIT
started=$SECONDS
SA_TEST_ALL=${SA_TEST_ALL:-0}
export SA_TEST_ALL
missing=0
left_out() { # tests, what and why
  missing=$((missing + $1)) ignored=$((ignored + $1))
  echo "left out: $2"
}

# The tests that run the binary find it beside themselves; --workspace keeps one set of dependency features.
cargo build --workspace --bins || exit 1
cargo test --workspace --no-fail-fast 2>&1 | tee "$log"
cargo_status=${PIPESTATUS[0]}
counts() { awk '/^test result:/ { p += $4; f += $6; i += $8 } END { print p + 0, f + 0, i + 0 }' "$1"; }
read -r passed failed ignored < <(counts "$log")
# Tests of the second engine are marked as ignored in the run above; with a library they are run now.
if [ -n "$SA_ORT_LIBRARY" ]; then
  echo "--- the second engine: $SA_ORT_LIBRARY"
  SA_ORT_LIBRARY=$SA_ORT_LIBRARY cargo test --workspace --no-fail-fast --lib --test agent -- --ignored on_ort:: 2>&1 | tee "$log"
  [ "${PIPESTATUS[0]}" = 0 ] || cargo_status=1
  read -r ort_passed ort_failed _ < <(counts "$log")
  if [ $((ort_passed + ort_failed)) = 0 ]; then
    echo "FAILED: no test of the second engine ran"
    cargo_status=1
  fi
  passed=$((passed + ort_passed)) failed=$((failed + ort_failed)) ignored=$((ignored - ort_passed - ort_failed))
else
  # They are among the ignored already.
  missing=$((missing + 1))
  echo "left out: the tests of the second engine, which need libonnxruntime.so (tests/setup.sh test says why it is not there; SA_ORT_LIBRARY names one)"
fi

check() { # name, command...
  local name=$1
  shift
  echo "--- $name"
  if "$@"; then passed=$((passed + 1)); else
    failed=$((failed + 1))
    echo "FAILED: $name"
  fi
}
check "models/train.sh goes on after a kill and is quick when all is done" tests/train.sh "$scratch"
listening=(tests/listen.py --agent "${CARGO_TARGET_DIR:-target}/debug/sa-agent" --bundle models/pretrained/nano/bundle --samples models/pretrained/nano/samples)
[ ! -x "$PYTHON" ] || listening+=(--judge "$PYTHON")
check "a conversation over a microphone and a speaker (PulseAudio)" python3 "${listening[@]}" --scratch "$scratch"
if [ -x "$PYTHON" ]; then
  check "the judge tells good speech from bad" "$PYTHON" tests/judge/selftest.py --sentences 20
  check "a recogniser understands the shipped agent" tests/judge/spoken.sh "$scratch"
else
  # The conversation above was held, too, but nobody listened to it.
  left_out 2 "the two tests that need pocketsphinx, and listening to the conversation (tests/setup.sh test says why it is not there)"
fi

if [ -x "$REFERENCE_PYTHON" ]; then
  check "imported HiFi-GANs compute what PyTorch does" "$REFERENCE_PYTHON" tests/reference/hifigan.py --bin "${CARGO_TARGET_DIR:-target}/debug"
  check "imported Qwen2s compute what transformers does" "$REFERENCE_PYTHON" tests/reference/qwen.py --bin "${CARGO_TARGET_DIR:-target}/debug"
  check "a Qwen2 that speaks says what PyTorch says" "$REFERENCE_PYTHON" tests/reference/speaks.py --bin "${CARGO_TARGET_DIR:-target}/debug"
  check "imported HuBERTs compute what transformers does" "$REFERENCE_PYTHON" tests/reference/hubert.py --bin "${CARGO_TARGET_DIR:-target}/debug"
else
  left_out 4 "imported checkpoints against transformers (tests/setup.sh test says why it is not there)"
fi

if [ -x "$ONNX_PYTHON" ]; then
  check "the shipped graphs are good ONNX and run in plain onnxruntime" "$ONNX_PYTHON" tests/onnx_bundle.py models/pretrained/nano/bundle
else
  left_out 1 "the check of the shipped graphs by onnx and onnxruntime (tests/setup.sh test says why they are not there)"
fi

echo "tests: $passed passed, $failed failed, $ignored left out, in $(((SECONDS - started) / 60)) min $(((SECONDS - started) % 60)) s"
if [ "$SA_TEST_ALL" = 1 ] && [ "$missing" != 0 ]; then
  echo "FAILED: tests were left out, and SA_TEST_ALL asks for all"
  exit 1
fi
[ "$cargo_status" = 0 ] && [ "$failed" = 0 ]
