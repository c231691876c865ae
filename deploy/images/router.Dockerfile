# The router's side of a node: the agent and FRR's supervisor, which are one program, and what they start: FRR 10.3 and nft.
# `make images` builds it, with the folder of the stripped program as its context.
ARG BASE=docker.io/library/debian:trixie-slim
FROM ${BASE}
# The numbers of FRR's user and groups are fixed: its files outlive a pod, on the node, and another image's have to fit them.
# iproute2 is for people who look for a fault.
RUN groupadd --system --gid 920 frr && groupadd --system --gid 921 frrvty \
 && useradd --system --uid 920 --gid frr --groups frrvty --home-dir /nonexistent --no-create-home --shell /usr/sbin/nologin frr \
 && apt-get -o Acquire::Retries=3 update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get -o Acquire::Retries=3 install -y -qq --no-install-recommends frr iproute2 nftables >/dev/null \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log/*.log /var/log/apt
COPY calico-vni-router /usr/local/bin/
# Root, since a container's other users get no capabilities; how few it needs is in the chart's DaemonSet.
ENTRYPOINT ["/usr/local/bin/calico-vni-router"]
