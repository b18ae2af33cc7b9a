# make demo: train, test and draw a detector on the embedded data (BACKBONE=mpvit_t, regionvit_t or pyramid_tnt_t).
# make test: lint and all tests in the default environment. make lanes: the other environments (tests/lanes).
# make gpu: the tests and times of a GPU. make gpu-bundle: the wheels that it needs on a machine without a network.
# make fuzz: many random cases of each property (CASES=350). make docs: the documentation as a site in site/.
# The path of a version of Python, if it is there. Where pyenv is in use, its variable makes it answer.
find = $(shell PYENV_VERSION=$(1) python$(1) -c 'import ensurepip, sys; print(sys.executable)' 2>/dev/null)
PYTHON ?= $(firstword $(foreach version,3.11 3.12 3.13 3.10,$(call find,$(version))))
BIN := .venv/bin
READY := .venv/ready
BACKBONE := mpvit_t
CONFIG := maskrcnn_$(BACKBONE)_digits
WORK := work_dirs/$(CONFIG)
IN_PARALLEL := --numprocesses 2 --dist loadfile --no-loadscope-reorder
DOCKER ?= docker
PLOT := $(BIN)/mim run mmdet analyze_logs plot_curve

# What these packages say of one another on every start; it helps nobody here.
export PYTHONWARNINGS := ignore
# Some containers set it. Then each start of a program compiles all of PyTorch and OpenMMLab anew: 20 seconds, not 8.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-fast fuzz gpu gpu-bundle lint lanes image tables docs pins
.DELETE_ON_ERROR:

demo: $(READY) data/digits/annotations/instances_val.json
	rm -rf $(WORK)
	$(BIN)/mim train mmdet configs/$(CONFIG).py --work-dir $(WORK)
	$(BIN)/mim test mmdet configs/$(CONFIG).py --checkpoint "$$(cat $(WORK)/last_checkpoint)" --work-dir $(WORK)/test
	$(PLOT) $(WORK)/2*/vis_data/scalars.json --style whitegrid --out $(WORK)/loss.png --title 'training' \
	    --keys loss loss_cls loss_bbox loss_mask --legend 'all losses' 'class' 'box' 'mask'
	$(PLOT) $(WORK)/2*/vis_data/scalars.json --style whitegrid --out $(WORK)/ap.png --title 'held-out images' \
	    --keys bbox_mAP_50 segm_mAP_50 --legend 'box AP50' 'mask AP50'
	$(BIN)/python tools/predict.py configs/$(CONFIG).py "$$(cat $(WORK)/last_checkpoint)" --score 0.5 --sheet $(WORK)/predictions.png
	@printf '\nLook at:\n'
	@printf '%s\n' $(WORK)/predictions.png $(WORK)/loss.png $(WORK)/ap.png

test test-fast fuzz: export OMP_NUM_THREADS := 1
test: lint
	$(BIN)/pytest $(IN_PARALLEL)

test-fast: lint
	$(BIN)/pytest $(IN_PARALLEL) -m 'not slow'

CASES := 350
fuzz: export MMVIT_FUZZ_CASES := $(CASES)
fuzz: $(READY)
	$(BIN)/pytest $(IN_PARALLEL) --timeout 0 tests/test_fuzz.py tests/test_fuzz_files.py

# Not in .venv: it takes the machine's own PyTorch. PYTHON= names the Python that has it.
gpu:
	bash tools/gpu_report.sh

PYTHON_VERSION := 3.12
TORCH := 2.11.0
gpu-bundle: $(READY)
	$(BIN)/python tools/gpu_bundle.py $(PYTHON_VERSION) $(TORCH)

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python tools/write_tables.py --check
	$(BIN)/hadolint docker/Dockerfile

# Each lane is an environment made from nothing. In it run the quick tests, those of the operators, and a training that
# is killed, resumed and tested.
LANES := oldest newest compiled forks
lanes: $(LANES:%=lane-%)
lane-oldest: LANE_PYTHON := 3.10
lane-newest: LANE_PYTHON := 3.13
lane-compiled: LANE_PYTHON := 3.11
lane-forks: LANE_PYTHON := 3.12

lane-%: BIN = .lanes/$*/bin
lane-%: export OMP_NUM_THREADS := 1
lane-%:
	$(call make-environment,$(call find,$(LANE_PYTHON)),Python $(LANE_PYTHON))
	$(BIN)/uv pip install --quiet --python $(BIN)/python --requirement tests/lanes/$*.txt
	$(if $(filter compiled,$*),$(compile-mmcv))
	$(BIN)/python -m mmvit
	$(BIN)/pytest $(IN_PARALLEL) -m 'not slow or lane'

# Builds mmcv with its own operators (ten minutes of g++). In an isolated build mmcv leaves them out without a word.
define compile-mmcv
	$(BIN)/uv pip uninstall --quiet --python $(BIN)/python mmcv-lite
	PATH="$(CURDIR)/$(BIN):$$PATH" MMCV_WITH_OPS=1 $(BIN)/uv pip install --python $(BIN)/python --no-deps --no-build-isolation mmcv==2.1.0
endef

# $(1): a Python, $(2): what is looked for
define make-environment
	@$(or $(1),false) -c 'import ensurepip, sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	    || { echo 'set-up stopped: it needs $(2) with its venv module: install it'; exit 1; }
	$(1) -m venv --clear $(dir $(BIN))
	$(BIN)/pip install --quiet "$$(grep '^uv==' requirements.txt)"
endef

# Build the image, and show inside it that it works.
image:
	$(DOCKER) build --file docker/Dockerfile --tag mmvit .
	$(DOCKER) run --rm mmvit bash docker/check.sh

# Write the tables of README and docs anew from the metafiles.
tables: $(READY)
	$(BIN)/python tools/write_tables.py

# Build the documentation into site/. A warning, a dead link or a dead anchor stops it. The variable turns off an
# announcement of the theme's authors.
docs: export NO_MKDOCS_2_WARNING := 1
docs: $(READY)
	$(BIN)/mkdocs build --strict

# Resolve the pins anew (pyproject.toml says which are held, and why).
pins: $(READY)
	$(BIN)/uv pip compile pyproject.toml --extra det --extra seg --extra openvino --extra dev --extra docs --group pinned \
	    --upgrade --universal --python-version 3.10 --no-emit-index-url --no-header --quiet -o requirements.txt

data/digits/annotations/instances_val.json: tools/make_digits.py | $(READY)
	$(BIN)/python tools/make_digits.py data/digits

$(READY): requirements.txt pyproject.toml
	$(call make-environment,$(PYTHON),Python 3.10 to 3.13 (or make PYTHON=/path/to/python))
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --requirement requirements.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@
