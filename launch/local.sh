#!/usr/bin/env bash
# Runs a command as several processes of this machine that work together, as on a cluster.
#
#   bash launch/local.sh N python -m launch.train --config=… --workdir=…
#
# Each process gets --coordinator, --processes and --process. On CPUs set JAX_NUM_CPU_DEVICES to the
# number of devices that each is to have; on GPUs each takes its share of those that
# CUDA_VISIBLE_DEVICES lists (all must be listed there). PORT chooses the coordinator's port
# (default: a free one). The first process writes to this terminal; of the others, lines on stderr
# come with their number in front.
#
# Exit status: 0 when all processes end well. When one fails, the others are asked to stop, killed
# GRACE seconds later (default 10), and the status is that of the one that failed first. Run the
# same command again to go on. Ctrl-C and SIGTERM are passed on as SIGTERM; the second one kills.
set -uo pipefail

count="${1:-}"
if ! [[ "$count" =~ ^[1-9][0-9]*$ ]] || [ $# -lt 2 ]; then
  echo "local.sh: give the number of processes and a command: local.sh 2 python -m launch.train …" >&2
  exit 2
fi
shift
port="${PORT:-$(python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')}"
IFS=, read -ra gpus <<<"${CUDA_VISIBLE_DEVICES:-}"
if [ "${#gpus[@]}" -gt 0 ] && [ $((${#gpus[@]} % count)) -ne 0 ]; then
  echo "local.sh: ${#gpus[@]} GPUs do not divide among $count processes" >&2
  exit 2
fi

pids=() signals=0
trap 'signals=$((signals + 1))' TERM INT
# Each process in a group of its own: Ctrl-C reaches this script alone.
set -m
# Bash tells on stderr of each such process how it was ended, with its source: not of interest.
exec 3>&2 2>/dev/null

for ((i = 0; i < count; i++)); do
  share=$((${#gpus[@]} / count))
  (
    exec 2>&3 3>&-
    if [ "$share" -gt 0 ]; then
      CUDA_VISIBLE_DEVICES="$(IFS=,; echo "${gpus[*]:$((i * share)):$share}")"
      export CUDA_VISIBLE_DEVICES
    fi
    [ "$i" -eq 0 ] || exec > >(sed "s/^/[$i] /") 2> >(sed "s/^/[$i] /" >&2)
    exec "$@" --coordinator="localhost:$port" --processes="$count" --process="$i"
  ) &
  pids+=($!)
done

left=$count passed=0
while [ "$left" -gt 0 ]; do
  wait -n # for whichever ends next, or a signal to this script
  status=$?
  if [ "$signals" -gt "$passed" ]; then
    passed=$signals
    signal=TERM
    [ "$passed" -eq 1 ] || signal=KILL
    kill -s "$signal" "${pids[@]}"
  elif [ "$status" -ne 0 ]; then
    break
  else
    left=$((left - 1))
  fi
done
[ "$left" -gt 0 ] || exit 0

[ "$passed" -gt 0 ] || echo "local.sh: a process ended with status $status; stopping the others" >&3
kill -TERM "${pids[@]}"
for _ in $(seq $((${GRACE:-10} * 10))); do
  kill -0 "${pids[@]}" || exit "$status"
  sleep 0.1
done
kill -KILL "${pids[@]}" 2>/dev/null
exit "$status"
