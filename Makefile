PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH := $(shell grep '^torch==' requirements.txt)
TORCH_CPU := https://download.pytorch.org/whl/cpu
BIN := .venv/bin

.PHONY: app test

app: .venv/app-installed
	$(BIN)/python app.py

test: .venv/test-installed
	$(BIN)/python -m pytest -q

$(BIN)/python:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "HyperLoRA needs Python 3.11 or newer: make app PYTHON=/path/to/python3.11"; exit 1; }
	"$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install -q "pip>=25.1"

# On Linux, PyPI's torch brings gigabytes of CUDA libraries; without an NVIDIA GPU take PyTorch's own CPU build, if its index answers.
.venv/app-installed: requirements.txt | $(BIN)/python
	@if [ "$$(uname)" = Linux ] && [ ! -e /proc/driver/nvidia ] && ! command -v nvidia-smi >/dev/null \
		&& $(BIN)/python -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1], timeout=5)' $(TORCH_CPU)/torch/ 2>/dev/null; \
	then $(BIN)/python -m pip install "$(TORCH)+cpu" --extra-index-url $(TORCH_CPU) || true; fi
	$(BIN)/python -m pip install -r requirements.txt
	@touch $@

.venv/test-installed: pyproject.toml .venv/app-installed
	$(BIN)/python -m pip install --group train --group eval --group dev
	@touch $@
