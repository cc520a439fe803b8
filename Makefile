# Everything starts here and needs only Python 3.11, make and git; every target makes .venv first when it is missing.
PYTHON ?= $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)
STORE ?= runs
ARGS ?=

VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' app/__init__.py)
IMAGE ?= byol-med:$(VERSION)
BASE_IMAGE ?= python:3.11-slim-bookworm
IMAGENET_WEIGHTS ?= 0
CHAOS ?= full
STUDY ?= studies/nih-28.yaml

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOCK_VENV := .venv-lock
AUDIT_VENV := .venv-audit

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test study chaos gpu-check smoke lint types check format lock secrets audit clean workflows image image-test local-run submit \
        cluster cluster-test

help: ## show this list
	@awk -F ':.*## ' '/^[.a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo 'ARGS="…" is handed on, e.g. make test ARGS="-k storage"; STORE=URI is where smoke writes (default: runs).'

demo: $(STAMP) ## run a small study on default data; prints the result table and the report's path
	$(BIN)/python -m app run --preset demo --workers 2 --store $(STORE) $(ARGS)

test: $(STAMP) ## run the test suite but for chaos, two tests at a time; ARGS="-n 0" for one
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not chaos" $(ARGS)

# A study that was registered before it was run. DATA is a folder of the files that RESULTS.md describes.
study: $(STAMP) ## run the registered study STUDY on the files in DATA, into STORE; it can be stopped and continued
	@test -n "$(DATA)" || { echo 'study: give DATA=FOLDER with pneumoniamnist.npz, breastmnist.npz, dermamnist_reconstructed.npz and nihcxr_unlabeled_28.npz'; exit 2; }
	$(BIN)/python -m app run --preset $(STUDY) --store $(STORE) --run-id $(basename $(notdir $(STUDY)))-registered --data-root $(DATA) \
	  --data nih_chestxray14=$(DATA)/nihcxr_unlabeled_28.npz \
	  --data dermamnist_reconstructed=$(DATA)/dermamnist_reconstructed.npz $(ARGS)

chaos: $(STAMP) ## kill, stop and cut off jobs at length; CHAOS=short takes two minutes
	CHAOS=$(CHAOS) $(BIN)/python -m pytest tests/chaos $(ARGS)

gpu-check: $(STAMP) ## on a machine with a GPU: its tests and its figures, into gpu-check/
	$(BIN)/python tests/gpu_check.py gpu-check $(ARGS)

smoke: $(STAMP) ## run the study on tiny subsets in 1-2 minutes, for your own CI
	$(BIN)/python -m app run --preset smoke --store $(STORE) $(ARGS)

lint: $(STAMP) ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## check the types
	$(BIN)/mypy

check: lint types test ## lint, types and test

format: $(STAMP) ## format the code and apply the safe lint fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

workflows: $(STAMP) ## derive the smoke workflow and the templates from workflows/full.yaml
	$(BIN)/python workflows/derive.py

image: ## build the CUDA image IMAGE on BASE_IMAGE; IMAGENET_WEIGHTS=1 bakes torchvision's weights in
	DOCKER_BUILDKIT=1 docker build --build-arg BASE_IMAGE=$(BASE_IMAGE) --build-arg IMAGENET_WEIGHTS=$(IMAGENET_WEIGHTS) \
	  --build-arg VERSION=$(VERSION) --build-arg REVISION="$$(git describe --always --dirty --abbrev=12 --exclude='*')" \
	  --tag $(IMAGE) .

cluster: ## bring up a one-node cluster on this Debian machine (root), with the image and Argo in it: 20 minutes at first
	tests/cluster/node/cluster.sh up
	eval "$$(tests/cluster/node/cluster.sh env)" && $(MAKE) image BASE_IMAGE=$(BASE_IMAGE) IMAGE=$(IMAGE)
	tests/cluster/node/cluster.sh load $(IMAGE)
	tests/cluster/node/cluster.sh weed
	@echo 'Now: eval "$$(tests/cluster/node/cluster.sh env)"; make cluster-test'

cluster-test: $(STAMP) ## run studies on the cluster that KUBECONFIG names, in its namespace byol, and break what can break
	@if [ -z "$$KUBECONFIG" ]; then \
	  echo 'KUBECONFIG names no cluster: this is left out. `make cluster` brings one up; or set it to one of your own.'; \
	else CLUSTER_TEST=1 $(BIN)/python -m pytest tests/cluster/live -v $(ARGS); fi

image-test: $(STAMP) image ## build the image and run a study in it, locked up as in a cluster
	BYOL_IMAGE=$(IMAGE) $(BIN)/python -m pytest tests/cluster/test_image.py $(ARGS)

# As in a cluster: nobody's user, nothing writable but mounts. The user's own data sets are read where they are.
local-run: ## run the study in the image, on all GPUs if there are any: results in STORE; ARGS="--preset smoke"
	@docker image inspect $(IMAGE) >/dev/null 2>&1 || $(MAKE) image
	@mkdir -p '$(STORE)'; set --; \
	if nvidia-smi -L >/dev/null 2>&1; then set -- --gpus all; else echo 'No GPU here: this runs on the CPU.' >&2; fi; \
	data="$${MEDMNIST_ROOT:-$$HOME/.medmnist}"; \
	if [ -d "$$data" ]; then set -- "$$@" --volume "$$data:/data:ro" --env MEDMNIST_ROOT=/data; fi; \
	docker run --rm --init "$$@" --user "$$(id -u):$$(id -g)" --read-only --cap-drop=ALL --security-opt=no-new-privileges \
	  --shm-size=1g --volume /scratch --volume "$$(cd '$(STORE)' && pwd):/store" \
	  $(IMAGE) run --preset demo --store /store $(ARGS)
	@echo 'The store is $(STORE).'

submit: $(STAMP) ## submit workflows/full.yaml and follow it: by argo, else by the Argo server; ARGS="-p preset=demo"
	@if command -v argo >/dev/null; then argo submit -n byol --watch workflows/full.yaml $(ARGS); \
	else $(BIN)/python -m app submit workflows/full.yaml $(ARGS); fi

$(VENV): $(STAMP) ## set up .venv from requirements-dev.txt

# The stamp is written last, so that an interrupted installation starts again instead of passing for a whole one.
$(STAMP): requirements-dev.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 13) else "Python 3.11 or 3.12 is needed, $(PYTHON) is %d.%d: set PYTHON=/path/to/python3.11" % v)'
	@echo 'Installing the locked requirements into $(VENV): once, some minutes, about 6 GB of disk on Linux.'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@touch $@

# pip-tools lives in a throw-away environment: it pins its own dependencies' versions, which are not ours. The CUDA packages
# exist only for Linux, and torch asks for them only there; pip-compile drops that marker, so it is put back.
lock: ## rewrite requirements*.txt from requirements*.in (ARGS=--upgrade takes newer versions)
	$(PYTHON) -m venv --clear $(LOCK_VENV)
	$(LOCK_VENV)/bin/python -m pip install --quiet --disable-pip-version-check pip-tools==7.6.2
	for name in requirements requirements-dev; do \
	  CUSTOM_COMPILE_COMMAND='make lock' $(LOCK_VENV)/bin/pip-compile --quiet --generate-hashes --allow-unsafe \
	    --strip-extras --no-emit-index-url --no-emit-find-links $(ARGS) --output-file=$$name.txt $$name.in && \
	  sed -i.bak -E 's/^((cuda|nvidia|triton)[a-z0-9-]*==[^ ]+) \\$$/\1 ; platform_system == "Linux" \\/' $$name.txt && \
	  rm $$name.txt.bak || exit 1; \
	done
	rm -rf $(LOCK_VENV)

# What scans lives apart from what is scanned. The baseline names what looks like a secret and is none, after somebody's look.
secrets: ## look for secrets in the repository; ARGS=--update takes a new baseline, which is to be read by eye
	@test -x $(AUDIT_VENV)/bin/detect-secrets || { $(PYTHON) -m venv --clear $(AUDIT_VENV) && \
	  $(AUDIT_VENV)/bin/python -m pip install --quiet --disable-pip-version-check detect-secrets==1.5.0 pip-audit==2.10.1; }
ifeq ($(ARGS),--update)
	git ls-files -z | xargs -0 $(AUDIT_VENV)/bin/detect-secrets scan > .secrets.baseline
else
	@# A copy, which the hook may rewrite where lines have moved; it says so by 3.
	@copy=$$(mktemp) && cp .secrets.baseline $$copy && git ls-files -z -- ':!.secrets.baseline' | COPY=$$copy xargs -0 sh -c \
	  'said=$$($(AUDIT_VENV)/bin/detect-secrets-hook --baseline $$COPY "$$@"); code=$$?; rm $$COPY; \
	  [ $$code -eq 0 ] || [ $$code -eq 3 ] || { echo "$$said"; exit $$code; }' sh
endif

audit: secrets ## known vulnerabilities of the locked requirements, by PyPI's advisories: needs the network
	$(AUDIT_VENV)/bin/pip-audit --strict --no-deps --disable-pip --requirement requirements.txt

clean: ## remove .venv and caches; results (runs/) stay
	rm -rf $(VENV) $(LOCK_VENV) $(AUDIT_VENV) .pytest_cache .mypy_cache .ruff_cache build dist *.egg-info
	find app tests -name __pycache__ -type d -prune -exec rm -rf {} +
