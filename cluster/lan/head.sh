#!/usr/bin/env bash
# Starts the head of a cluster on this machine, and stays in the foreground until it is told to end: Ctrl-C, or SIGTERM.
#
#   cluster/lan/head.sh [more options of "ray start"]
#
# Variables:
#   RAY_MM_ADDRESS    of this machine, as the others reach it; unset: the first that "hostname -I" names
#   RAY_MM_PORT       of the head; unset: 6379
#   RAY_MM_DASHBOARD  where the dashboard, which takes jobs, listens; unset: 127.0.0.1, reached through ssh -L
#   RAY_MM_TOKEN      file with the cluster's token; made if it is not there; unset: ~/.ray/auth_token
set -euo pipefail

address="${RAY_MM_ADDRESS:-$(hostname -I | cut -d ' ' -f 1)}"
port="${RAY_MM_PORT:-6379}"
token="${RAY_MM_TOKEN:-$HOME/.ray/auth_token}"

if ! command -v ray > /dev/null; then
  echo "head.sh: there is no ray on the PATH; activate the environment that ray_mm is in" >&2
  exit 1
fi
if [[ ! -e "$token" ]]; then
  mkdir -p -- "$(dirname -- "$token")"
  new="$(umask 077 && mktemp -- "$token.XXXXXX")"
  python3 -c 'import secrets; print(secrets.token_hex(32), end="")' > "$new"
  ln -- "$new" "$token" 2> /dev/null || true # somebody was faster: theirs it is
  rm -f -- "$new"
  echo "head.sh: made the token $token; every other machine needs a copy that only its user can read (chmod 600)"
fi
mode="$(stat -Lc %a -- "$token")"
if [[ "$mode" != ?00 ]]; then
  echo "head.sh: $token can be read by others (mode $mode); whoever has it can run code here: chmod 600 $token" >&2
  exit 1
fi

export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$token" RAY_USAGE_STATS_ENABLED=0
echo "head.sh: other machines join with: cluster/lan/worker.sh $address:$port"
exec ray start --head --block --node-ip-address="$address" --port="$port" \
  --dashboard-host="${RAY_MM_DASHBOARD:-127.0.0.1}" --labels=ray-mm/role=head "$@"
