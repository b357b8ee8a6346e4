#!/usr/bin/env bash
# Two "hosts" in network namespaces of their own, joined by a cable, train together; one is killed.
#
#     unshare -rmn tests/two_hosts.sh PYTHON FOLDER train.py's options ...
#
# Writes FOLDER/host_a.log and host_b.log; ends with host a's exit code.
set -euo pipefail
python=$1 folder=$2
shift 2
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
GLOO_SOCKET_IFNAME=cable_b ip netns exec b "$python" $launch --local-addr 10.7.7.2 \
    --rdzv-conf "is_host=false,$conf" train.py "$@" > "$folder/host_b.log" 2>&1 &
processes_of_b() { ip netns pids b; }
trap 'kill -9 $host_a $(processes_of_b) 2> /dev/null || true' EXIT

until ls "$folder"/run/checkpoints/step_*.pth > /dev/null 2>&1; do
    kill -0 $host_a
    sleep 0.2
done
kill -9 $(processes_of_b) # torchrun and the training
echo "$(date +%s) host b killed" > "$folder/killed"
wait $host_a
