# make demo: set up .venv and run the embedded default. make test: lint, types, all fast tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# flwr, ray and Hugging Face stay silent and offline.
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: demo test test-slow lint browser quantization bench clean

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV); the first time takes some minutes, PyTorch is large."
	$(BIN)/pip install --quiet -e '.[dev]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/fedhead run simulations/experiments/mnist5k.toml --out runs/demo --overwrite

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# The report's tests need a browser; without one they are skipped and say so.
browser:
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null \
	|| { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium chromium-driver; } >/dev/null 2>&1 \
	|| echo "No Chromium could be installed: the report is not tested in a browser."

test: lint browser
	$(BIN)/pytest -m 'not slow' -n 2

test-slow: $(STAMP)
	$(BIN)/pytest -m slow

quantization: $(STAMP)
	$(BIN)/fedhead quantize-report

bench: $(STAMP)
	$(BIN)/fedhead bench simulation

clean:
	rm -rf $(VENV) build *.egg-info
