# make fit: install if needed, then meta-train on the embedded data set.  make test: install if needed, then test.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# Two OpenMP threads that spin while they wait can be twenty times slower than one beside other work.
export OMP_WAIT_POLICY ?= PASSIVE

# Of this repository, whatever is installed: what `pip install` needs for the package, its tests and its notebooks.
NEEDS := pyproject.toml setup.py requirements.txt

.PHONY: fit test test-newest wheel test-slow test-kernels test-gpu test-minimum torture bench bench-peers bench-race bench-family \
	notebooks docs lint types clean

fit: $(VENV)/installed
	$(RUN) -m imaml_lightning fit $(ARGS)

# One process for each core; a file's tests stay together, because they share what they have trained.
test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --dist loadfile $(ARGS)

test-slow: $(VENV)/installed
	$(RUN) -m pytest -m slow $(ARGS)

# The numerical tests on other kernels than this machine's best, and with two threads: none may rest on the last bit. What
# torch, oneDNN and MKL choose by themselves is capped alike; `default` has no vector kernels of torch's own.
KERNELS ?= default $(shell grep -qsw avx2 /proc/cpuinfo && echo avx2) $(shell grep -qsw avx512f /proc/cpuinfo && echo avx512)
THREADS ?= 1 2
FAST = $(patsubst %,tests/test_%.py,argmin root linear conjugate_gradient singular inner curvature proximal objective optimizers folded fused \
	parameters solution metrics randomness)
NUMERICAL ?= $(FAST) $(patsubst %,tests/test_%.py,adaptation adaptation_cost advice answering data_augment diagnostics family \
	meta_learner models outer precision predictor solver_combinations unrolled user_tasks)
DNN_default = SSE41
DNN_avx2 = AVX2
DNN_avx512 = ALL
MKL_default = SSE4_2
MKL_avx2 = AVX2
MKL_avx512 = AVX512

test-kernels: $(foreach kernels,$(KERNELS),$(foreach threads,$(THREADS),test-kernels-$(kernels)-$(threads)))

test-kernels-%: $(VENV)/installed
	ATEN_CPU_CAPABILITY=$(word 1,$(subst -, ,$*)) ONEDNN_MAX_CPU_ISA=$(DNN_$(word 1,$(subst -, ,$*))) \
	    MKL_ENABLE_INSTRUCTIONS=$(MKL_$(word 1,$(subst -, ,$*))) IMAML_TEST_THREADS=$(word 2,$(subst -, ,$*)) \
	    OMP_NUM_THREADS=$(word 2,$(subst -, ,$*)) $(RUN) -m pytest -q -n auto --dist loadfile $(NUMERICAL) $(ARGS)

test-gpu: $(VENV)/installed
	$(RUN) -m pytest -m gpu $(ARGS)

# Kills runs and saves, and counts what survives: hours for all of it, see --help for parts.
torture: $(VENV)/installed
	PYTHONPATH=. $(RUN) tests/torture.py $(ARGS)

bench: $(VENV)/installed
	PYTHONPATH=. $(RUN) benchmarks/sampling.py
	PYTHONPATH=. $(RUN) benchmarks/memory.py
	PYTHONPATH=. $(RUN) benchmarks/task_chunk.py
	PYTHONPATH=. $(RUN) benchmarks/meta_step.py
	PYTHONPATH=. $(RUN) benchmarks/task_batch.py
	PYTHONPATH=. $(RUN) benchmarks/precision.py
	PYTHONPATH=. $(RUN) benchmarks/ranks.py
	PYTHONPATH=. $(RUN) benchmarks/peers.py

# The same beside the peers that the registry has, in an environment of their own; bench-race is the race with them to an accuracy.
bench-peers: .venv-peers/installed
	PYTHONPATH=. .venv-peers/bin/python benchmarks/peers.py $(ARGS)
	PYTHONPATH=. .venv-peers/bin/python benchmarks/hypergradients.py
	PYTHONPATH=. .venv-peers/bin/python benchmarks/sampling.py --omniglot $${IMAML_OMNIGLOT_ROOT:-data}

# Hours: core-seconds of training until an accuracy, 5-way and then 20-way.
bench-race: .venv-peers/installed
	PYTHONPATH=. OMP_NUM_THREADS=1 .venv-peers/bin/python benchmarks/race.py $(ARGS)
	PYTHONPATH=. OMP_NUM_THREADS=1 .venv-peers/bin/python benchmarks/race.py --way 20 $(ARGS)

.venv-peers/installed: $(NEEDS) constraints.txt
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet -r requirements.txt torchopt betty-ml jaxopt higher easyfsl -c constraints.txt
	.venv-peers/bin/python -m pip install --quiet --no-deps torchmeta==1.8.0
	# learn2learn's data part does not compile on Python 3.11 and newer; its algorithms are Python alone.
	.venv-peers/bin/python -m pip download --quiet --no-deps --no-binary learn2learn --dest .venv-peers/sources learn2learn==0.2.0
	tar -C $$(.venv-peers/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
	    -xzf .venv-peers/sources/learn2learn-0.2.0.tar.gz --strip-components=1 learn2learn-0.2.0/learn2learn
	touch $@

bench-family: $(VENV)/installed
	PYTHONPATH=. $(RUN) benchmarks/family.py
	PYTHONPATH=. $(RUN) benchmarks/sinusoid.py
	PYTHONPATH=. $(RUN) benchmarks/learned_rate.py

# Runs the notebooks from top to bottom and keeps their outputs, without sliders, which need a live kernel.
notebooks: $(VENV)/installed
	IMAML_STILL=1 $(RUN) -m jupyter execute --inplace --timeout 600 notebooks/*.ipynb

# The site, into site/.
docs: $(VENV)/installed-dev
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --quiet --strict $(ARGS)

lint: $(VENV)/installed-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: $(VENV)/installed-dev
	$(RUN) -m mypy $(ARGS)

# The tests with the oldest versions that pyproject.toml allows, which may warn of what newer ones have mended.
test-minimum: $(NEEDS)
	test -x .venv-minimum/bin/python || $(PYTHON) -m venv .venv-minimum
	grep -o '"[a-zA-Z][a-zA-Z0-9_.-]*\(\[[a-z,]*\]\)\{0,1\}>=[0-9.]*' pyproject.toml | grep -v setuptools \
	    | sed 's/"//; s/\[.*\]//; s/>=/==/' > .venv-minimum/oldest.txt
	.venv-minimum/bin/python -m pip install --quiet -r requirements.txt -c .venv-minimum/oldest.txt
	.venv-minimum/bin/python -m pip install --quiet --no-deps torchmeta==1.8.0
	.venv-minimum/bin/python -m pytest -W default $(ARGS)

# The tests with the newest versions that there are, without the constraint of `make`.
test-newest: $(NEEDS)
	test -x .venv-newest/bin/python || $(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager -r requirements.txt
	.venv-newest/bin/python -m pip install --quiet --no-deps torchmeta==1.8.0
	.venv-newest/bin/python -m pytest $(ARGS)

# The package, into dist/.
wheel: $(VENV)/installed-dev
	$(RUN) -m build --wheel

# The stamp is written last, so that an interrupted installation is done again.
$(VENV)/installed: $(NEEDS) constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt -c constraints.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps torchmeta==1.8.0
	touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt -c constraints.txt
	touch $@

clean:
	rm -rf $(VENV) .venv-minimum .venv-newest .venv-peers build dist site
