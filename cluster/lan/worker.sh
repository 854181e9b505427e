#!/usr/bin/env bash
# Adds this machine to a cluster, and stays in the foreground until it is told to end: Ctrl-C, or SIGTERM.
#
#   cluster/lan/worker.sh HEAD:PORT [more options of "ray start"]
#
# Variables:
#   RAY_MM_ROLE   data: a machine without GPUs that reads and decodes for those with some; train: one that trains; unset: train
#   RAY_MM_TOKEN  file with the cluster's token, a copy of the head's; unset: ~/.ray/auth_token
set -euo pipefail

if (($# == 0)) || [[ "$1" != *:* ]]; then
  echo "worker.sh: takes the address of the head, HOST:PORT, which head.sh prints" >&2
  exit 2
fi
head="$1"
shift
token="${RAY_MM_TOKEN:-$HOME/.ray/auth_token}"
role="${RAY_MM_ROLE:-train}"

if ! command -v ray > /dev/null; then
  echo "worker.sh: there is no ray on the PATH; activate the environment that ray_mm is in" >&2
  exit 1
fi
if [[ ! -r "$token" ]]; then
  echo "worker.sh: there is no token in $token; copy the head's there, and chmod 600 it" >&2
  exit 1
fi
mode="$(stat -Lc %a -- "$token")"
if [[ "$mode" != ?00 ]]; then
  echo "worker.sh: $token can be read by others (mode $mode); whoever has it can run code here: chmod 600 $token" >&2
  exit 1
fi

export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$token" RAY_USAGE_STATS_ENABLED=0
exec ray start --block --address="$head" --labels="ray-mm/role=$role" "$@"
