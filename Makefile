# make fit: install if needed, then meta-train on the embedded data set.  make test: install if needed, then test.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# Two OpenMP threads that spin while they wait can be twenty times slower than one beside other work.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: fit test test-slow test-gpu bench clean

fit: $(VENV)/installed
	$(RUN) -m imaml_lightning fit $(ARGS)

test: $(VENV)/installed
	$(RUN) -m pytest $(ARGS)

test-slow: $(VENV)/installed
	$(RUN) -m pytest -m slow $(ARGS)

test-gpu: $(VENV)/installed
	$(RUN) -m pytest -m gpu $(ARGS)

bench: $(VENV)/installed
	PYTHONPATH=. $(RUN) benchmarks/sampling.py
	PYTHONPATH=. $(RUN) benchmarks/memory.py
	PYTHONPATH=. $(RUN) benchmarks/task_chunk.py

# The stamp is written last, so that an interrupted installation is done again.
$(VENV)/installed: requirements.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps torchmeta==1.8.0
	touch $@

clean:
	rm -rf $(VENV)
