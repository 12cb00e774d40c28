#!/bin/sh
# Runs the Erlang peer of `falaj bench`: erlang.sh actors|links SECONDS ROUNDS. Prints "name value" lines. Links are Erlang's distribution
# over TLS 1.3, both sides authenticated. Needs erlang-base and, for links, erlang-ssl.
set -eu
part=$1
seconds=$2
rounds=$3
here=$(cd "$(dirname "$0")" && pwd)
command -v erl >/dev/null || { echo "erl is not installed (apt-get install erlang-base erlang-ssl)"; exit 1; }
work=$(mktemp -d)
other=
epmd=
trap 'kill -9 $other $epmd 2>/dev/null || true; rm -rf "$work"' EXIT
cp "$here/bench.erl" "$work/"
(cd "$work" && erlc bench.erl) || exit 1

if [ "$part" = actors ]; then
  erl -noshell -noinput -pa "$work" -run bench actors "$seconds" "$rounds" >"$work/out" 2>"$work/err" || { cat "$work/err" "$work/out"; exit 1; }
  cat "$work/out"
  exit
fi

erl -noshell -noinput -pa "$work" -run bench certificates "$work" >"$work/err" 2>&1 || { cat "$work/err"; exit 1; }
side() {  # options of one side, as inet_tls_dist reads them
  echo "{$1,[{certfile,\"$work/$1.crt\"},{keyfile,\"$work/$1.key\"},{cacertfile,\"$work/$1.ca\"},{verify,verify_peer},{versions,['tlsv1.3']}$2]}"
}
echo "[$(side server ',{fail_if_no_peer_cert,true}'),$(side client '')]." >"$work/tls.conf"
port=$(awk 'BEGIN {srand(); print 10000 + int(rand() * 20000)}')
ERL_EPMD_PORT=$port
export ERL_EPMD_PORT
HOME=$work ERL_CRASH_DUMP=/dev/null
export HOME ERL_CRASH_DUMP
epmd -port "$port" -address 127.0.0.1 &
epmd=$!
tries=100
until epmd -port "$port" -names >/dev/null 2>&1 || [ $tries -eq 0 ]; do
  tries=$((tries - 1))
  sleep 0.05
done
[ $tries -gt 0 ] || { echo "epmd did not start on port $port"; exit 1; }
node() {
  name=$1
  shift
  exec ${other_processor:-} erl -noshell -noinput -pa "$work" -name "$name@127.0.0.1" -setcookie bench -start_epmd false -proto_dist inet_tls \
    -ssl_dist_optfile "$work/tls.conf" -kernel inet_dist_use_interface '{127,0,0,1}' "$@"
}
other_processor=${FALAJ_BENCH_PIN:+taskset -c 1}
node b -run bench serve >"$work/b.log" 2>&1 &
other=$!
other_processor=
(node a -run bench links "$seconds" "$rounds") >"$work/out" 2>"$work/err" || { cat "$work/err" "$work/out" "$work/b.log"; exit 1; }
cat "$work/out"
