# Two commands do all set-up: `make demo` and `make test`. Both build .venv once and reuse it.
PYTHON ?= python3
OUT ?= work/demo
CORPUS ?= work/full_corpus
MODEL := models/all_tasks_30m
BIN := .venv/bin
VERSION := $(shell cat setup.py constraints.txt | sha256sum | cut -c1-12)
INSTALLED := .venv/.installed-$(VERSION)
PACKAGES := configs kernels tokenize_farm pretrain cluster
# A GPU host's platform, for wheels that are downloaded on another machine.
WHEEL_TARGET := --only-binary=:all: --python-version 3.12 --implementation cp \
	$(foreach tag,manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux1,--platform $(tag)_x86_64)

.PHONY: demo shards test test-cluster test-gpu bench wheelhouse lint venv clean

demo: venv  ## recordings -> farm -> training -> audio that one can hear
	$(BIN)/uniaudio demo --out $(OUT) $(if $(AUDIO_DIR),--audio-dir "$(subst ~/,$(HOME)/,$(AUDIO_DIR))")
	@echo "and what nine minutes of one GPU give, by the model in $(MODEL):"
	$(BIN)/uniaudio generate --checkpoint $(MODEL) --task tts --text "the weather is very nice today" \
		--prompt $(MODEL)/samples/voice_slt.wav --out $(OUT)/audio/by_$(notdir $(MODEL)).wav

shards: venv  ## what $(MODEL) learned from: 25 hours, recorded and read; 1 GB to fetch, over an hour of two cores; killed, it goes on
	$(BIN)/uniaudio corpus full --out $(CORPUS)
	$(BIN)/uniaudio tokenize full_corpus manifest=$(CORPUS)/manifest.jsonl output_dir=$(CORPUS)/shards
	@echo "train on them, on a GPU: uniaudio train all_tasks_30m data.shards=$(CORPUS)/shards"

# One file stays on one worker, so that what its tests share is made once; one thread each, or they wait for each other's.
test: venv
	@# Three workers on two cores: tests that start processes wait for them half of the time. In the order of folders, since xdist's own
	@# (most tests first) leaves files of few and long tests to the end, where one worker is alone.
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not gpu and not cluster" -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

test-cluster: venv  ## real schedulers on this machine: Ray jobs, and Slurm where its Debian packages are installed; about 10 minutes
	$(BIN)/pytest -m cluster tests $(ARGS)

test-gpu:  ## on a GPU host, with the python that holds torch
	$(PYTHON) -m pytest -m gpu tests $(ARGS)

bench:  ## on a GPU host; results are written below $(OUT)
	$(PYTHON) -m uniaudio.kernels.benchmarks.run --out $(OUT)

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p .lint/uniaudio
	@for file in uniaudio/*.py; do ln -sf ../../$$file .lint/uniaudio/; done
	@for folder in $(PACKAGES); do ln -sfn ../../$$folder .lint/uniaudio/$$folder; done
	MYPYPATH=.lint $(BIN)/mypy --config-file pyproject.toml -p uniaudio

wheelhouse: venv  ## offline wheels for a GPU host (Python 3.12, torch and triton already there)
	rm -rf .wheelhouse && mkdir -p .wheelhouse
	$(BIN)/pip download -q --no-deps $(WHEEL_TARGET) -c constraints.txt -r cluster/wheelhouse.txt -d .wheelhouse
	DS_BUILD_OPS=0 $(BIN)/pip wheel -q --no-deps --no-build-isolation -c constraints.txt deepspeed -w .wheelhouse
	$(BIN)/pip wheel -q --no-deps --no-build-isolation . -w .wheelhouse
	@echo "on the GPU host: python3 -m pip install --no-index --no-deps --find-links .wheelhouse .wheelhouse/*.whl"

venv: $(INSTALLED)

$(INSTALLED): setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q --no-compile -c constraints.txt setuptools wheel torch
	DS_BUILD_OPS=0 $(BIN)/pip install -q --no-compile --no-build-isolation -c constraints.txt -e '.[farm,train,cluster,eval,dev]'
	$(BIN)/pip check
	@# Compiled once here, on all cores, since pip would take one and an environment may forbid it later: imports are three times as fast.
	@$(BIN)/python -m compileall -qq -j 0 .venv/lib || true
	rm -f .venv/.installed-* && touch $@

clean:  ## what make itself makes again; results that lie elsewhere (work/mine, runs, shards), stores of MLflow and .venv stay
	rm -rf .lint .wheelhouse build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis work/demo
	@if [ -d work ]; then rmdir --ignore-fail-on-non-empty work; fi
