#!/usr/bin/env bash
# On a spot machine of AWS or Google Cloud: asks its metadata service every few seconds whether it will be taken back, and if so
# tells the cluster. Trainings then save their state and go on elsewhere (AWS gives 120 seconds, Google Cloud 30).
#
#   cluster/cloud/watch-preemption.sh aws|gcp HEAD:PORT
#
# RAY_MM_METADATA: address of the metadata service; unset: the cloud's own
# RAY_MM_WATCH_EVERY: seconds between two looks; unset: 5
set -euo pipefail

cloud="${1:-}"
head="${2:-}"
every="${RAY_MM_WATCH_EVERY:-5}"
if [[ "$cloud" != aws && "$cloud" != gcp ]] || [[ "$head" != *:* ]]; then
  echo "watch-preemption.sh: takes aws or gcp, and the address of the head, HOST:PORT" >&2
  exit 2
fi

is_taken_back() {
  local server answer token
  if [[ "$cloud" == aws ]]; then
    server="${RAY_MM_METADATA:-http://169.254.169.254}"
    token="$(curl -sf -m 2 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' "$server/latest/api/token")" || return 1
    # 404 until there is a notice.
    curl -sf -m 2 -o /dev/null -H "X-aws-ec2-metadata-token: $token" "$server/latest/meta-data/spot/instance-action"
  else
    server="${RAY_MM_METADATA:-http://metadata.google.internal}"
    answer="$(curl -sf -m 2 -H 'Metadata-Flavor: Google' "$server/computeMetadata/v1/instance/preempted")" || return 1
    [[ "$answer" == TRUE ]]
  fi
}

until is_taken_back; do sleep "$every"; done
if [[ "$cloud" == aws ]]; then seconds=120; else seconds=30; fi
echo "watch-preemption.sh: this machine will be taken back in $seconds seconds"
exec ray drain-node --address="$head" --reason=DRAIN_NODE_REASON_PREEMPTION \
  --reason-message="the cloud takes this machine back" --deadline-remaining-seconds="$seconds"
