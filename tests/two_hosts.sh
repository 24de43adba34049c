#!/bin/sh
# One training on two "hosts": network namespaces joined by a cable, each with an address and a torchrun of its own. Needs root.
#
#     tests/two_hosts.sh fit --config configs/sinusoid_5shot.yaml --trainer.accelerator cpu
set -eu
a=imaml_a_$$ b=imaml_b_$$ pids=
python=${PYTHON:-python}

cleanup() {
    for pid in $pids; do kill "$pid" 2>/dev/null || true; done
    ip netns del "$a" 2>/dev/null || true
    ip netns del "$b" 2>/dev/null || true
}
trap cleanup EXIT INT TERM

ip netns add "$a"
ip netns add "$b"
ip link add cable netns "$a" type veth peer name cable netns "$b"
ip -n "$a" address add 10.77.0.1/24 dev cable
ip -n "$b" address add 10.77.0.2/24 dev cable
for host in "$a" "$b"; do
    ip -n "$host" link set lo up
    ip -n "$host" link set cable up
done

rank=0
for host in "$a" "$b"; do
    GLOO_SOCKET_IFNAME=cable ip netns exec "$host" "$python" -m torch.distributed.run \
        --nnodes 2 --nproc-per-node 1 --node-rank $rank --master-addr 10.77.0.1 --master-port 29400 \
        -m imaml_lightning "$@" --trainer.num_nodes 2 --trainer.devices 1 --trainer.strategy ddp &
    pids="$pids $!"
    rank=$((rank + 1))
done
for pid in $pids; do wait "$pid"; done
pids=
