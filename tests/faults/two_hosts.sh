#!/usr/bin/env bash
# Two "hosts" in network namespaces of their own, joined by a cable, train together until one fails.
#
#     unshare -rmn tests/faults/two_hosts.sh FAULT PYTHON FOLDER train.py's options ...
#
# FAULT: gone (b is killed), back (killed and started again), cut5, cut60 (the cable is out for so
# many seconds).
# Writes FOLDER/host_a.log and host_b.log; ends with host a's exit code.
set -euo pipefail
fault=$1 python=$2 folder=$3
shift 3
mount -t tmpfs none /run && mkdir -p /run/netns
ip netns add b
ip link add cable_a type veth peer name cable_b
ip link set cable_b netns b
ip addr add 10.7.7.1/24 dev cable_a && ip link set cable_a up && ip link set lo up
ip -n b addr add 10.7.7.2/24 dev cable_b && ip -n b link set cable_b up && ip -n b link set lo up

export OMP_NUM_THREADS=1 TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
conf=last_call_timeout=5,keep_alive_interval=2,keep_alive_max_attempt=3
launch="-m torch.distributed.run --nnodes 1:2 --nproc-per-node 1 --max-restarts 3 --rdzv-backend c10d
    --rdzv-endpoint 10.7.7.1:29500 --rdzv-id two_hosts"
GLOO_SOCKET_IFNAME=cable_a "$python" $launch --local-addr 10.7.7.1 --rdzv-conf "is_host=true,$conf" \
    train.py "$@" > "$folder/host_a.log" 2>&1 &
host_a=$!
host_b() {
    GLOO_SOCKET_IFNAME=cable_b ip netns exec b "$python" $launch --local-addr 10.7.7.2 \
        --rdzv-conf "is_host=false,$conf" train.py "$@" >> "$folder/host_b.log" 2>&1 &
}
host_b "$@"
processes_of_b() { ip netns pids b; }
trap 'kill -9 $host_a $(processes_of_b) 2> /dev/null || true' EXIT

wait_until() { # a command that succeeds, while host a is at work
    until "$@" > /dev/null 2>&1; do
        kill -0 $host_a
        sleep 0.2
    done
}
wait_until compgen -G "$folder/run/checkpoints/step_*.pth"
echo "$(date +%s) $fault" > "$folder/fault"
case $fault in
gone | back)
    kill -9 $(processes_of_b) # torchrun and the training
    if [ "$fault" = back ]; then
        wait_until grep -q "on 1 x cpu" "$folder/host_a.log"
        host_b "$@"
    fi
    ;;
cut*)
    ip link set cable_a down
    sleep "${fault#cut}"
    ip link set cable_a up
    ;;
esac
wait $host_a
