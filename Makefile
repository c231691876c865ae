# calico-vni: every command that a developer or CI needs. `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
CARGO ?= cargo
TOOLS := target/tools/bin
LAB := target/debug/lab
ROUTER_IMAGE ?= ghcr.io/calico-vni/calico-vni-router:$(shell sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)

.PHONY: help deps generate build images kube helm demo test test-unit test-e2e previous upgrade-e2e uninstall-e2e kind-e2e image-e2e kind-parts book fuzz fuzz-router fuzz-planner bench-plan bench-fanout check fmt clippy deny generated advisories up down

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /  make \1\t/' | expand -t 22

deps: ## packages that the lab and the tests need (apt on Debian and Ubuntu; elsewhere the list of what is missing)
	@e2e/deps.sh

kube: ## etcd, kube-apiserver, kube-controller-manager and kubectl from their Go modules, into target/kube
	@e2e/kube/build.sh

helm: ## helm from its Go module, into target/tools
	@e2e/helm/build.sh

build: ## all programs
	@$(CARGO) build --workspace --bins

images: ## the two container images of a release build, by docker, podman or buildah
	@deploy/images/build.sh release

generate: helm ## definitions below crds/generated and e2e/calico-crds, docs/api.md, and what is rendered from the chart
	@$(CARGO) run --quiet -p calico-vni-crds --bin generate-crds
	@deploy/helm/render.sh

demo: deps kube build ## the main job: two tenants over EVPN on two nodes, and the matrix of who reaches whom
	@$(LAB) demo

up: deps kube build ## the lab, until Ctrl-C, to look around in
	@$(LAB) up

down: ## stop a lab that was left behind
	@$(LAB) down

test: deps kube helm ## everything: unit, golden, property, kernel, real API server, the lab's scenarios, kind unless KIND=0 (needs root)
	@$(CARGO) test --workspace
	@$(LAB) test
	@LAB_CALICO_API=v1 $(LAB) test withdraw uninstall     # where Calico's kinds are in its older group; at the end nothing is left
ifeq ($(KIND),0)
	@echo 'kind: left out, by KIND=0: chart and images were not tried on real kubelets'
else
	@$(MAKE) --no-print-directory kind-e2e image-e2e
endif

# The parts of it name the whole workspace too, so that all share one build.
test-unit: ## of these, unit, golden and property tests: no privilege, under a minute when built
	@$(CARGO) test --workspace --lib --bins --test generated --test golden --test laws --test fuzz --test plan --test docs

test-e2e: deps kube ## of these, the lab's scenarios
	@$(CARGO) test --quiet --workspace --no-run
	@$(LAB) test

FUZZ_CASES ?= 1000000
fuzz: ## a million cases each of what a controller could send and of what people could write (FUZZ_CASES=… for fewer)
	@$(CARGO) test --profile fuzz -p calico-vni-router -p calico-vni-planner --lib --test fuzz --no-run
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target fuzz-router fuzz-planner

fuzz-router:
	@PROPTEST_CASES=$(FUZZ_CASES) $(CARGO) test --profile fuzz -p calico-vni-router -p calico-vni-planner --lib fuzz

fuzz-planner:
	@PROPTEST_CASES=$(FUZZ_CASES) $(CARGO) test --profile fuzz -p calico-vni-router -p calico-vni-planner --test fuzz

previous: ## controller and agent of the version before this one, from the history, into target/previous
	@e2e/previous/build.sh

upgrade-e2e: deps kube helm build previous ## the lab's upgrade: by helm from the chart before this one, back and again, with tenants in use (needs root)
	@$(LAB) test upgrade

uninstall-e2e: deps kube helm build ## the lab's uninstall: the chart goes with tenants in use, and nothing is left (needs root)
	@$(LAB) test uninstall

kind-e2e: kind-parts ## the chart on real kubelets: install, rights, leader, upgrade, uninstall, in a kind cluster by podman (needs root)
	@$(LAB) kind test

image-e2e: deps kube kind-parts ## the main job and its end, with routers in the image that is shipped, with its FRR 10.3 (needs root)
	@. e2e/kind/env.sh && ROUTER_IMAGE=$(ROUTER_IMAGE) $(LAB) test withdraw

kind-parts: helm
	@KIND=1 e2e/deps.sh
	@e2e/kind/build.sh
	@$(CARGO) build --workspace --bins
	@. e2e/kind/env.sh && deploy/images/build.sh dev && e2e/kind/node.sh

book: $(TOOLS)/mdbook ## README.md and docs/ as a book, in target/book/html
	@docs/book.sh

$(TOOLS)/mdbook:
	@$(CARGO) install mdbook --version =0.5.4 --locked --root target/tools

bench-plan: ## what a re-plan of 1,000 tenants on 5,000 nodes costs
	@$(CARGO) bench --quiet -p calico-vni-planner --bench plan

bench-fanout: ## what a change of one tenant costs with 500 to 5,000 agents, and all of them coming at once
	@$(CARGO) bench --quiet -p calico-vni-controller --bench fanout

check: fmt clippy deny generated ## format, lints, licences and sources of dependencies, generated files

fmt:
	@$(CARGO) fmt --all --check

clippy:
	@$(CARGO) clippy --workspace --all-targets -- -D warnings

deny: $(TOOLS)/cargo-deny
	@$(TOOLS)/cargo-deny --log-level error --all-features check bans licenses sources

advisories: $(TOOLS)/cargo-deny ## known vulnerabilities of dependencies (asks the advisory database over the network)
	@$(TOOLS)/cargo-deny check advisories

$(TOOLS)/cargo-deny:
	@$(CARGO) install cargo-deny --version ^0.20 --locked --root target/tools

generated:
	@$(CARGO) test --quiet -p calico-vni-crds --test generated
