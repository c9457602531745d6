# Everything starts here. `make dev` once; `make check` before a commit; `make demo` to see it run.
SHELL := /bin/bash
V := .venv/bin
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PYTEST := $(V)/pytest

.PHONY: dev docs check test release-protos sim mutants twin e2e bench proto demo up down clean

.dev/ready: pyproject.toml requirements.lock ansible/files/apt-dev.txt tests/lab/install.sh
	tests/lab/install.sh
	@touch $@

dev: .dev/ready ## Install what is missing and link the packages.

proto: .dev/ready ## Generate the stubs again.
	$(V)/python -m grpc_tools.protoc -I .dev --python_out=.dev --grpc_python_out=.dev \
	  --mypy_out=quiet:.dev --mypy_grpc_out=quiet:.dev \
	  --plugin=protoc-gen-mypy=$(V)/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(V)/protoc-gen-mypy_grpc \
	  .dev/cairn/proto/v1/*.proto .dev/cairn/proto/etcd/*.proto
	$(V)/python tests/stubs.py proto/v1/*_pb2_grpc.py proto/etcd/*_pb2_grpc.py

docs: .dev/ready ## Write docs/permissions.md anew.
	$(V)/python -m cairn.controller.permission_table > docs/permissions.md

check: .dev/ready ## Types, style, layers, protos, tidiness. Seconds.
	$(V)/ruff check .
	$(V)/ruff format --check .
	$(V)/mypy
	$(V)/lint-imports
	$(V)/buf lint
	$(V)/buf breaking --against proto/v1/lock.binpb
	$(PYTEST) -q tests/test_tidy.py

test: check ## Everything that proves it works: what needs no lab on all cores (up to four), then what takes all cores by itself.
	$(PYTEST) -n auto --maxprocesses 4 --dist loadfile tests --ignore tests/e2e --ignore tests/sim/test_swarm.py; rest=$$?; \
	  $(PYTEST) tests/sim/test_swarm.py tests/e2e && exit $$rest

release-protos: .dev/ready ## Promise today's protos: later wire-breaking change fails the check.
	$(V)/buf build -o proto/v1/lock.binpb

sim: .dev/ready ## The whole cloud on virtual time: SEEDS=10000, BUSY=1 (more faults), LARGE=1 (200 nodes, 5,000 VMs), SEED=n (again), SHRINK=n (the shortest story), FIRST=n, JOBS=n.
	@$(V)/python -m tests.sim $(if $(SEED),--seed $(SEED),$(if $(SHRINK),--shrink $(SHRINK),--seeds $(or $(SEEDS),$(if $(LARGE),1,300)) $(if $(LARGE),--large) \
	  $(if $(FIRST),--first $(FIRST)) $(if $(JOBS),--jobs $(JOBS)) $(if $(BUSY),--busy))) $(if $(TRACE),--trace)

mutants: .dev/ready ## Can the simulation fail? Known bugs, each until a seed catches it: SEEDS=300, ONLY="a b", JOBS=n.
	@$(V)/python -m tests.sim.mutants --seeds $(or $(SEEDS),300) $(if $(ONLY),--only $(ONLY)) $(if $(JOBS),--jobs $(JOBS))

twin: .dev/ready ## The same users, faults and checkers on real servers, etcd, libvirt and QEMU: MINUTES=10 SEED=1.
	@$(V)/python -m tests.twin $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED))

e2e: .dev/ready
	$(PYTEST) tests/e2e

bench: .dev/ready ## Ratios against baselines measured in the same run.
	$(V)/python -m tests.bench

up down demo: .dev/ready
	@$(V)/python -m tests.lab $@ $(if $(N),--nodes $(N)) $(if $(STORAGE),--storage $(STORAGE))

clean: ## Forget what was built here (not the lab: `make down`).
	rm -rf .venv .dev
