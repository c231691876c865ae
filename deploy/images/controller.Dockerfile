# The controller, and nothing else that could be started: no shell, no package manager.
# `make images` builds it, with the folder of the stripped program as its context.
ARG BASE=gcr.io/distroless/cc-debian13:nonroot
FROM ${BASE}
COPY calico-vni-controller /usr/local/bin/
# nobody's; a number, so that kubelet can see that it is not root (runAsNonRoot).
USER 65532:65532
# It writes no file: the root file system may be read-only.
ENTRYPOINT ["/usr/local/bin/calico-vni-controller"]
