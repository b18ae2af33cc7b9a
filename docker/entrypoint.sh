#!/bin/sh
# Run a command with as many threads as the container's quota has CPUs (docker run --cpus=2). Without a quota, or with an
# OMP_NUM_THREADS of its own, the command is run as it is.
if [ -z "${OMP_NUM_THREADS:-}" ]; then
    OMP_NUM_THREADS=$(python -I -S "$(dirname "$0")/../mmvit/quota.py")
    if [ -n "$OMP_NUM_THREADS" ]; then export OMP_NUM_THREADS; else unset OMP_NUM_THREADS; fi
fi
exec "$@"
