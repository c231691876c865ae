# The images that kubeadm's manifests name, out of programs built from Go modules; each stage is one of them.
FROM scratch AS kube-apiserver
COPY kube/ /
ENTRYPOINT ["kube-apiserver"]

# The same program by another name; an image of its own by its configuration.
FROM kube-apiserver AS kube-controller-manager
ENTRYPOINT ["kube-controller-manager"]

FROM scratch AS kube-scheduler
COPY kube-scheduler/ /
ENTRYPOINT ["kube-scheduler"]

FROM scratch AS etcd
COPY etcd/ /
ENTRYPOINT ["etcd"]

FROM scratch AS coredns
COPY coredns/ /
ENTRYPOINT ["/coredns"]

FROM scratch AS pause
COPY pause/ /
ENTRYPOINT ["/pause"]

FROM docker.io/library/debian:bookworm-slim AS kube-proxy
RUN apt-get -o Acquire::Retries=3 update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get -o Acquire::Retries=3 install -y -qq --no-install-recommends conntrack iptables kmod nftables >/dev/null \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt
COPY kube-proxy/ /
ENTRYPOINT ["kube-proxy"]
