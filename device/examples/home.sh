#!/bin/sh
# A simulated home for the demo: what is switched stays switched, in a file. Replace it by a program of your own.
#   home.sh TOOL WORDS...      prints the result in words, on one line; exit code 1: it failed
# The file is $SA_HOME_STATE; without it, one of the user's own in /tmp.
# The words come from a language model: they are compared and stored, and never reach a shell, a path or a pattern.
set -eu
PATH=/usr/bin:/bin
state=${SA_HOME_STATE:-/tmp/sa-home-$(id -u)}
tool=$1
shift
words=$*
touch "$state"

get() { # key, what it is while nobody has set it
  key=$1 otherwise=$2 awk -F= '$1 == ENVIRON["key"] { found = $2 } END { print found == "" ? ENVIRON["otherwise"] : found }' "$state"
}
put() { # key, value
  key=$1 value=$2 awk -F= '$1 != ENVIRON["key"] { print } END { print ENVIRON["key"] "=" ENVIRON["value"] }' "$state" >"$state.partial"
  mv "$state.partial" "$state"
  echo ok
}
last=${words##* }  # "kitchen on" → "on"
first=${words%% *}
before=${words% *} # "living room on" → "living room"
degrees="sixteen,seventeen,eighteen,nineteen,twenty,twenty one,twenty two,twenty three,twenty four,twenty five,twenty six"
warmer() { # a step up or down the list of degrees
  now=$(get thermostat "twenty one") list=$degrees step=$1 awk 'BEGIN {
    n = split(ENVIRON["list"], all, ",")
    for (i = 1; i <= n; i++) if (all[i] == ENVIRON["now"]) at = i
    at = at ? at + ENVIRON["step"] : int(n / 2)
    if (at < 1) at = 1
    if (at > n) at = n
    print all[at]
  }' </dev/null
}

case "$tool $words" in
  "light set all "*) sed '/^light /d' "$state" >"$state.partial" && mv "$state.partial" "$state" && put "lights" "$last" ;;
  "light set "*) rest=${before#set }; put "light $rest" "$last" ;;
  "light status "*) get "light ${words#status }" "$(get lights off)" ;;
  "light dim "* | "light color "* | "light brighter "* | "light darker "*) put "light look" "$words" ;;
  "blinds set "*) put "blinds ${before#set }" "$last" ;;
  "lock set "*) put "lock ${before#set }" "$last" ;;
  "lock status "*) get "lock ${words#status }" locked ;;
  "window status "*) echo closed ;;
  "device set "*) put "device ${before#set }" "$last" ;;
  "thermostat warmer") level=$(warmer 1) && put thermostat "$level" >/dev/null && echo "$level" ;;
  "thermostat cooler") level=$(warmer -1) && put thermostat "$level" >/dev/null && echo "$level" ;;
  "thermostat set "*) put thermostat "${words#set }" ;;
  "temperature "*) echo "twenty one" ;;
  "weather paris" | "weather rome") echo "sunny twenty four degrees" ;;
  "weather oslo" | "weather moscow") echo "snowy minus three degrees" ;;
  "weather london"*) echo "rainy fourteen degrees" ;;
  "weather here") echo "clear eighteen degrees" ;;
  "weather "*) echo "cloudy fifteen degrees" ;;
  "list add "*) items=$(get list none)
    if [ "$items" = none ]; then put list "${words#add }"; else put list "${items##* and } and ${words#add }"; fi ;;
  "list remove "*) put list none ;;
  "list read") get list none ;;
  "calendar next") echo "yoga class at nine thirty" ;;
  "message read") echo "anna dinner is ready" ;;
  "door camera") echo "peter" ;;
  "battery ") echo "eighty" ;;
  "chance coin") echo heads ;;
  "chance dice") echo four ;;
  "music "*) put "$tool" "$words" ;;
  *) exit 1 ;;
esac
