// Command kube-proxy is Kubernetes' own, built from its Go module: a program of
// its own, since it runs on the lab's nodes, where a small binary starts faster.
package main

import (
	"os"

	"k8s.io/component-base/cli"
	kubeproxy "k8s.io/kubernetes/cmd/kube-proxy/app"
)

func main() { os.Exit(cli.Run(kubeproxy.NewProxyCommand())) }
