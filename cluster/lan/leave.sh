#!/usr/bin/env bash
# Tells the cluster that this machine will be gone in some seconds: trainings save their state and go on elsewhere, and nothing
# new is begun here. Waits until nothing runs here any more, or until there is little left of that time.
#
#   cluster/lan/leave.sh HEAD:PORT SECONDS [NODE_ID]
#
# NODE_ID is for a machine that is more than one node; unset: this machine's.
# RAY_MM_TOKEN: file with the cluster's token; unset: ~/.ray/auth_token
set -euo pipefail

if (($# < 2)) || [[ "$1" != *:* ]] || [[ ! "$2" =~ ^[0-9]+$ ]]; then
  echo "leave.sh: takes the address of the head, HOST:PORT, and after how many seconds this machine is gone" >&2
  exit 2
fi
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="${RAY_MM_TOKEN:-$HOME/.ray/auth_token}"
node=()
if (($# > 2)); then node=(--node "$3"); fi
exec python -m ray_mm.launch.leave "$2" --address "$1" "${node[@]}"
