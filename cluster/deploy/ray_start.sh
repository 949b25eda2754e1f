#!/bin/bash
# A Ray cluster on machines of your own, step by step. Read it, set the three names, run each part where it says.
set -eu

HEAD=10.0.0.1              # address of the first machine, on the network that the others reach it by
PORT=25000                 # a free port there
TOKEN="$HOME/.hpfwi-token" # a file that all machines see, or a copy of it on each, mode 600

case "${1:-}" in
token) # once
  (umask 077 && python3 -c 'import secrets; print(secrets.token_hex(32), end="")' >"$TOKEN")
  ;;
head | node | run)
  export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$TOKEN" RAY_USAGE_STATS_ENABLED=0
  # A node that falls silent counts as lost after 10 s instead of 30.
  export RAY_health_check_period_ms=1000 RAY_health_check_failure_threshold=3 RAY_health_check_timeout_ms=2000
  own="$(ip -4 route get "$HEAD" | sed -n 's/.* src \([0-9.]*\).*/\1/p')"
  common=(--block "--node-ip-address=$own" "--num-cpus=$(nproc)" --min-worker-port=0 --max-worker-port=0
    --dashboard-agent-listen-port=0 --disable-usage-stats)
  case "$1" in
  head) # on the first machine; stays until Ctrl-C, and ends what it started
    exec ray start --head "--port=$PORT" --include-dashboard=false "${common[@]}"
    ;;
  node) # on every other machine, likewise
    exec ray start "--address=$HEAD:$PORT" "${common[@]}"
    ;;
  run) # on the first machine: run what follows, such as `ray_start.sh run hpfwi invert run.toml --workers 8`
    shift
    RAY_ADDRESS="$HEAD:$PORT" exec "$@"
    ;;
  esac
  ;;
*)
  echo "usage: $0 token | head | node | run PROGRAM ARGUMENT ..." >&2
  exit 2
  ;;
esac
