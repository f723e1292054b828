PYTHON ?= python3
DATASET ?= phantom
PROFILE ?= fast
FRESH ?=
ROWS ?=
ENCODER ?=
MINUTES ?=
SUBMISSION ?=
LESSON ?=

# A returned file's name is data: Make does not expand it, and it reaches Python by the environment, past the shell.
override SUBMISSION := $(value SUBMISSION)
override LESSON := $(value LESSON)
export SUBMISSION LESSON

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
RUNTIME := out/runtime/node_modules/.package-lock.json
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

ASROOT := $(shell [ "$$(id -u)" = 0 ] || echo sudo -n)

.DEFAULT_GOAL := help
.PHONY: help env tutorial site notebooks lab grade lint check test chromium runtime encoder weights results bits bench picture times clean student

help:  ## list these targets (below each: what you can set, and how long it takes)
	@awk -F':.*## ' '/^[a-z]+:.*## / { at = index($$2, " ("); more = substr($$2, at + 2, length($$2) - at - 2); \
	  printf "  make %-10s %s\n", $$1, at ? substr($$2, 1, at - 1) : $$2; if (at) printf "%19s%s\n", "", more }' $(MAKEFILE_LIST)

env: $(INSTALLED)  ## build .venv with everything that is needed (several GB, a few minutes, once)

$(INSTALLED): requirements.txt requirements-lib.txt requirements-site.txt requirements-engines.txt constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0] + ": make env PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch torchvision "setuptools>=77" wheel
	SAM2_BUILD_CUDA=0 $(PIP) --no-build-isolation --requirement requirements.txt --editable .
	@touch $@

tutorial: env  ## run every lesson and write out/tutorial-*/index.html (DATASET=fib25, PROFILE=cpu, FRESH=1 to start over)
	@$(BIN)/python tools/course/run_tutorial.py --dataset $(DATASET) --profile $(PROFILE) $(if $(filter-out 0,$(FRESH)),--fresh)

site: tutorial runtime  ## run the lessons that have changed, then build out/site/html of all (PROFILE=cpu for the pictures that we publish)
	@$(BIN)/python tools/course/build_site.py --dataset $(DATASET) --profile $(PROFILE)

notebooks: env  ## regenerate notebooks/*.ipynb and the README's table from notebooks/src
	$(BIN)/python tools/course/build_notebooks.py

lab: env  ## open the lessons in JupyterLab
	$(BIN)/jupyter lab notebooks

grade: env  ## score the exercises of a returned notebook, or of a folder of them (SUBMISSION=x.ipynb; LESSON=01 to refuse any other)
	@$(BIN)/python tools/course/grade.py

# By apt where no password is asked for; elsewhere the tests say what is missing: skipped, or failed when CI is set.
chromium: env  ## install Chromium for the tests in a browser (Debian and Ubuntu)
	@$(BIN)/python tools/course/chromium.py || { $(ASROOT) apt-get update -qq && \
	  $(ASROOT) env DEBIAN_FRONTEND=noninteractive apt-get install -qy chromium; } || \
	  echo "No Chromium could be installed here: install it, or Google Chrome, by hand"

# The same for npm: without it the site has no playground, and the playground's tests are skipped, or fail when CI is set.
runtime: $(RUNTIME)  ## install what runs the model in the site's playground (onnxruntime-web, by npm)

$(RUNTIME): site/playground/package.json site/playground/package-lock.json
	@mkdir -p out/runtime && cp $^ site/playground/.npmrc out/runtime
	@npm ci --prefix out/runtime --ignore-scripts --no-audit --no-fund --loglevel error && touch $@ || \
	  echo "onnxruntime-web could not be installed: the playground needs npm, which comes with Node.js"

lint: env  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Two tests at a time, a module's tests in one process: many wait for a browser, and modules share what is slow to make.
# Two lessons at a time with a thread each are done sooner than with threads that wait for each other.
check test: export OMP_NUM_THREADS ?= 1

check: lint  ## linters and the fast tests, before every commit (a minute and a half on two cores; names the slowest tests)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m "not slow" --durations 5

test: chromium runtime lint  ## linters and all tests: lessons run, a browser opens, processes are killed
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

encoder: env  ## pretrain the mini encoder without labels of people (an hour on one core; GUIDE=natural goes on with that of photographs)
	$(BIN)/python tools/results/pretrain_guide.py $(if $(GUIDE),--guide $(GUIDE))

student: env  ## train the student that ships in data/pretrained (an hour on one core, or MINUTES=5; its rows: tools/results/train_student.py --rows)
	$(BIN)/python tools/results/train_student.py $(if $(MINUTES),--minutes $(MINUTES))

weights: env  ## train the mini model that ships in data/pretrained, after its teacher (eight hours on one core; BATCH=8 on a GPU)
	$(BIN)/python tools/results/train_mini.py $(if $(BATCH),--batch $(BATCH))
	$(BIN)/python tools/results/adapt_targets.py --source

results: env  ## train and evaluate what is missing of docs/results.md (about a day in two terminals; ROWS="unet fine_tuned" MINUTES=60 runs a part; ENCODER=tiny takes SAM2.1's encoder)
	$(BIN)/python tools/results/results.py $(if $(ROWS),--rows $(ROWS)) $(if $(ENCODER),--encoder $(ENCODER)) $(if $(MINUTES),--minutes $(MINUTES))
	$(BIN)/python tools/results/render_results.py

bits: env  ## measure bits against VOI, what is missing of docs/measured/bits.md (40 minutes of one core; MINUTES=20 does a part)
	$(BIN)/python tools/results/measure_bits.py $(if $(MINUTES),--minutes $(MINUTES))

bench: env  ## measure where the time goes, to docs/measured/bench.md (half an hour, nothing else running; what blocks do to VOI: tools/benchmarks/bench_blocks.py accuracy perfect)
	$(BIN)/python tools/benchmarks/bench.py
	$(BIN)/python tools/benchmarks/bench_blocks.py
	$(BIN)/python tools/benchmarks/measure_engines.py

picture: env  ## draw the picture of the README
	$(BIN)/python tools/course/draw_overview.py

times: env  ## copy what the last runs of `make tutorial` took to docs/
	$(BIN)/python tools/course/record_times.py

clean:  ## remove results and caches (.venv stays)
	rm -rf out .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name .venv -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -prune -exec rm -rf {} +
