#!/bin/sh
# Runs fuzz targets: tests/fuzz/run.sh BUILD_FOLDER SECONDS [NAME[:SECONDS]...]. As many at once as there are cores. Seeds lie in
# tests/fuzz/seeds/NAME/ (may be absent), what is found in BUILD_FOLDER/fuzz/. One line "ok NAME" or "FAILED NAME" for each.
set -eu
cd "$(dirname "$0")/../.."
folder=$1
seconds=$2
shift 2
[ $# -gt 0 ] || set -- $(ls tests/fuzz/*.cpp | sed 's|.*/||; s|\.cpp$||')

one() {
  case $1 in
    *:*) seconds=${1#*:} && set -- "${1%%:*}" ;;
  esac
  work=$folder/fuzz/$1
  mkdir -p "$work/corpus"
  seeds=tests/fuzz/seeds/$1
  [ -d "$seeds" ] || seeds=
  if UBSAN_OPTIONS=print_stacktrace=1 "$folder/fuzz_$1" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=65536 \
    -artifact_prefix="$work/" "$work/corpus" $seeds >"$work/log" 2>&1; then
    echo "ok $1 ($(grep -o 'Done [0-9]* runs' "$work/log" || echo 'no count'))"
  else
    grep -v -e "NEW\|REDUCE" "$work/log" | tail -n 60
    echo "FAILED $1: the input lies in $work/"
  fi
}

if [ "${FALAJ_FUZZ_ONE:-}" ]; then
  one "$1"
  exit
fi
printf '%s\n' "$@" | FALAJ_FUZZ_ONE=1 xargs -n 1 -P "$(nproc)" "$0" "$folder" "$seconds" | tee "$folder/fuzz.log"
! grep -q '^FAILED' "$folder/fuzz.log"
