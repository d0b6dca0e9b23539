#!/usr/bin/env bash
# Installs what `make demo`, `make test` or `make train` lack, and says what. Rust itself is assumed.
#   tests/setup.sh demo|bench|test|train
set -euo pipefail
wanted=${1:?demo, bench, test or train}
SA_CACHE=${SA_CACHE:-${HOME:-/var/tmp}/.cache/sa}
VENV=$SA_CACHE/judge-venv
POCKETSPHINX=5.1.1
ONNX_VENV=$SA_CACHE/onnx-venv
REFERENCE_VENV=$SA_CACHE/reference-venv
# NumPy 1, for which Debian's PyTorch was built.
REFERENCE="numpy==1.26.4 transformers==4.48.3 scikit-learn==1.5.2 joblib==1.6.0 onnxruntime==1.20.1"
ONNX="onnxruntime==1.31.1 onnx==1.23.2"

command -v cargo >/dev/null || { echo "setup: no cargo; Rust 1.95 or newer is assumed (https://rustup.rs)" >&2; exit 1; }

missing=()
need() { command -v "$1" >/dev/null || missing+=("$2"); } # program, Debian package
need cc gcc
# cpal always speaks to ALSA on Linux; its headers are found by pkg-config.
need pkg-config pkg-config
[ -e /usr/include/alsa/asoundlib.h ] || missing+=(libasound2-dev)
[ "$wanted" = demo ] || need python3 python3 # measures and judges
if [ "$wanted" = test ] || [ "$wanted" = train ]; then
  need espeak-ng espeak-ng # voices and phones of the corpus
  need flite flite # the voice that the agent copies
  [ "$wanted" = train ] || [ -x /usr/sbin/mosquitto ] || need mosquitto mosquitto # the broker that messages are tested against
  [ "$wanted" = train ] || need mosquitto_sub mosquitto-clients
  if [ "$wanted" = test ]; then # a microphone and a speaker of null sinks
    need pulseaudio pulseaudio
    need pactl pulseaudio-utils
    ls /usr/lib/*/alsa-lib/libasound_module_pcm_pulse.so >/dev/null 2>&1 || missing+=(libasound2-plugins)
  fi
  python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
fi
# Debian packages, as root or by sudo
debian() {
  echo "setup: installing Debian packages: $*"
  command -v apt-get >/dev/null || { echo "setup: no apt-get here; install these by hand: $*" >&2; return 1; }
  local as_root=
  [ "$(id -u)" = 0 ] || as_root=sudo
  $as_root apt-get update -qq && DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}
[ ${#missing[@]} -eq 0 ] || debian "${missing[@]}"

# venv FOLDER "PACKAGES" WHAT-FOR WHAT-IS-LOST [OPTION]: a virtual environment with these packages, or none at all and a word about it.
venv() {
  local folder=$1 packages=$2 python=python3
  [ "$(cat "$folder/installed" 2>/dev/null)" != "$packages" ] || return 0
  echo "setup: installing $packages ($3) into $folder"
  rm -rf "$folder"
  mkdir -p "$SA_CACHE"
  [ -z "${5:-}" ] || python=/usr/bin/python3 # Debian's packages are for Debian's Python
  # unquoted: several packages
  if "$python" -m venv ${5:-} "$folder" && "$folder/bin/pip" install -q --disable-pip-version-check $packages; then
    echo "$packages" >"$folder/installed"
  else
    rm -rf "$folder"
    echo "setup: could not install $packages (is PyPI reachable, and is there a wheel for this Python?); $4 will be left out, and say so" >&2
  fi
}

if [ "$wanted" = test ] || [ "$wanted" = train ]; then
  venv "$VENV" "pocketsphinx==$POCKETSPHINX" "the judge of the tests, no part of the product" "tests that listen to the agent's speech"
fi
if [ "$wanted" = test ]; then
  # The reference implementations: Debian's PyTorch (on the CPU; PyPI has it with gigabytes of CUDA only) under transformers.
  if /usr/bin/python3 -c 'import torch, ensurepip' 2>/dev/null || debian python3-torch python3-venv; then
    venv "$REFERENCE_VENV" "$REFERENCE" "what imported checkpoints are held against" "the tests against them" --system-site-packages
  else
    echo "setup: no python3-torch (is Debian's archive reachable?); the tests of imported checkpoints will be left out, and say so" >&2
  fi
  venv "$ONNX_VENV" "$ONNX" "the second engine and the checker of graphs, for the tests alone" "the tests of the second engine"
fi
