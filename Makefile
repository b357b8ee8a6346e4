# make demo   train and score on synthetic street scenes, two to six minutes on two CPU cores
# make test   run the tests      make lint   check the style      make lock   update the lock files
# make results   print a table of all runs in training_logs/
# make bench  compare speed with other projects, half an hour on two CPU cores
# make gpu    run all checks that need an NVIDIA GPU; make test-gpu   only the tests
# Each target creates .venv if needed. To use another Python: make demo PYTHON=python3.13

PYTHON ?= python3
BIN := .venv/bin
UV := $(BIN)/uv
LOGS := training_logs

.PHONY: demo test test-slow test-gpu gpu bench results lint lock

demo: .venv/ready
	$(BIN)/python utils/synthetic.py
	$(BIN)/python utils/preprocess_data.py --dataset synthetic
	$(BIN)/python train.py --config configs/synthetic/demo.yaml --overwrite true
	$(BIN)/python evaluation/eval_on_val_for_metrics.py --checkpoint demo
	CITYSCAPES_DATASET=data/synthetic CITYSCAPES_RESULTS=$(LOGS)/model_eval_val_for_metrics \
	CITYSCAPES_EXPORT_DIR=$(LOGS)/model_eval_val $(BIN)/csEvalPixelLevelSemanticLabeling
	@echo "Look at: $(LOGS)/demo/samples/, $(LOGS)/demo/curves.png, $(LOGS)/model_eval_val/"

test: .venv/ready-dev  # without GPUs, because tests fork, and CUDA does not survive a fork
	CUDA_VISIBLE_DEVICES= $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test-gpu: .venv/ready-dev
	$(BIN)/python -m pytest -m gpu -n 0

gpu: .venv/ready-dev
	$(BIN)/python benchmarks/gpu.py

test-slow: .venv/ready-dev
	CUDA_VISIBLE_DEVICES= $(BIN)/python -m pytest -m slow

bench: .venv/ready-dev
	$(BIN)/python utils/synthetic.py
	$(BIN)/python utils/preprocess_data.py --dataset synthetic --pack true
	$(BIN)/python benchmarks/bench_ops.py
	$(BIN)/python benchmarks/bench_eval.py
	$(BIN)/python benchmarks/bench_step.py
	$(BIN)/python benchmarks/bench_step.py --profile
	$(BIN)/python benchmarks/bench_models.py
	$(BIN)/python benchmarks/table.py

results: .venv/ready
	$(BIN)/python utils/results.py

lint: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lock: .venv/ready
	for name in requirements requirements-dev; do \
		$(UV) pip compile -q --universal --generate-hashes --python-version 3.11 \
			--exclude-newer "7 days" $$name.txt -o $$name.lock; done

.venv/bin/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON): older than 3.11. Run: make PYTHON=python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "error: python3-venv is missing. Run: sudo apt install python3-venv" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check uv

.venv/ready: requirements.lock | .venv/bin/uv
	$(UV) pip install --require-hashes -r requirements.lock
	@touch $@

.venv/ready-dev: requirements-dev.lock .venv/ready
	$(UV) pip install --require-hashes -r requirements-dev.lock
	@touch $@
