#!/bin/sh
# A simulated home for the demo: what is switched stays switched, in a file. Replace it by a program of your own.
#   home.sh STATE_FILE TOOL WORDS...
# Prints the result in words, on one line. Nothing that is said reaches a shell or a pattern: words are only compared and stored.
set -eu
state=$1
tool=$2
shift 2
words=$*
