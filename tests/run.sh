#!/usr/bin/env bash
# All tests: the Rust workspace, then those that listen to speech; one closing line with the counts.
set -uo pipefail
cd "$(dirname "$0")/.."
SA_CACHE=${SA_CACHE:-${HOME:-/var/tmp}/.cache/sa}
PYTHON=$SA_CACHE/judge-venv/bin/python
log=$(mktemp)
scratch=$(mktemp -d)
trap 'rm -rf "$log" "$scratch"' EXIT
started=$SECONDS

# The tests that run the binary find it beside themselves; --workspace keeps one set of dependency features.
cargo build --workspace --bins || exit 1
cargo test --workspace --no-fail-fast 2>&1 | tee "$log"
cargo_status=${PIPESTATUS[0]}
read -r passed failed ignored < <(awk '/^test result:/ { p += $4; f += $6; i += $8 } END { print p + 0, f + 0, i + 0 }' "$log")

check() { # name, command...
  local name=$1
  shift
  echo "--- $name"
  if "$@"; then passed=$((passed + 1)); else
    failed=$((failed + 1))
    echo "FAILED: $name"
  fi
}
if [ -x "$PYTHON" ]; then
  check "the judge tells good speech from bad" "$PYTHON" tests/judge/selftest.py --sentences 20
  check "a recogniser understands the shipped agent" tests/judge/spoken.sh "$scratch"
else
  ignored=$((ignored + 2))
  echo "left out: the two tests that need pocketsphinx (tests/setup.sh test says why it is not there)"
fi

echo "tests: $passed passed, $failed failed, $ignored left out, in $(((SECONDS - started) / 60)) min $(((SECONDS - started) % 60)) s"
[ "$cargo_status" = 0 ] && [ "$failed" = 0 ]
