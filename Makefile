PYTHON ?= python3
VENV ?= .venv
ARGS ?=
# On a CPU-only Linux machine TORCH_INDEX=https://download.pytorch.org/whl/cpu saves the download of CUDA.
TORCH_INDEX ?=
EXTRA := $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(EXTRA)
PIP := $(BIN)/python -m pip install --quiet -c constraints.txt

.PHONY: setup meta study test figures lab lint
setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "sam3lab needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	$(PIP) -e '.[$(EXTRA),dev]'
	@touch $@

# Meta's own package. It asks for older releases of what the rest uses, so that its own needs are named here instead.
meta: $(READY)
	$(PIP) einops ftfy iopath regex timm torchvision
	$(PIP) --no-deps open_clip_torch sam3

study: $(READY)
	$(BIN)/sam3lab study $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not alone" $(ARGS)
	$(BIN)/python -m pytest -m alone $(ARGS)

figures: $(READY)
	$(BIN)/sam3lab figures $(ARGS)

lab: $(READY)
	$(BIN)/jupyter lab notebooks

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
