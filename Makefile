# The course, from a clone: every target sets up what it needs, in environments of its own under .venv/.
#
#   .venv/site   builds the book; no torch (constraints-site.txt)
#   .venv/dev    runs labs, tests and benchmarks (constraints.txt)
#
# Each is made when it is missing, and brought up to date when its pins or pyproject.toml have changed.

PYTHON ?= python3
PORT ?= 8000
ADDRESS ?= 127.0.0.1
JOBS ?= 2
LABS ?= $(sort $(wildcard labs/*/*.ipynb))
TORCH ?=
LAB_FLAGS ?=
ONLY ?=
REPOSITORY ?=
REMOTE ?= origin

SITE_EXTRAS := site
DEV_EXTRAS := test,notebook
TORCH_CPU_WHEELS := https://download.pytorch.org/whl/cpu

SITE := .venv/site
DEV := .venv/dev
PIP_INSTALL := -m pip install --disable-pip-version-check

ifeq ($(TORCH),cpu)
TORCH_INDEX := --extra-index-url $(TORCH_CPU_WHEELS)
else ifneq ($(TORCH),)
$(error TORCH=$(TORCH) is not known: leave it out for what pip finds, or say TORCH=cpu for PyTorch's CPU wheels)
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help book pdf serve lab labs student test bench canary stamp publish bundle clean python

help: ## show this list
	@echo "make TARGET [VARIABLE=value]; targets:"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "variables:"
	@echo "  PYTHON=python3.12   the Python, 3.11 or newer, that environments are made with"
	@echo "  TORCH=cpu           take PyTorch's CPU wheels (Linux without a GPU: saves several GB)"
	@echo "  LABS=\"labs/…\"       only these labs (labs, student, test)"
	@echo "  LAB_FLAGS=\"…\"       passed to JupyterLab (lab): --no-browser, --allow-root in a container"
	@echo "  PORT=8000           where serve listens (ADDRESS=127.0.0.1)"
	@echo "  JOBS=2              test processes at once"
	@echo "  ONLY=py311-tested   only these environments (canary; a wrong name gets the list)"
	@echo "  REPOSITORY=https://github.com/OWNER/REPOSITORY   where a fork lives (stamp)"
	@echo "  REMOTE=origin       whose branch student is written (publish)"
	@echo "  CHECK=1             only check (stamp; TAG=v… of a release too), or try it without a network (bundle)"

book: $(SITE)/.installed ## build the site into _build/html
	@# Warnings are errors. After one, all pages are read anew: a page that has not changed would not warn again.
	@$(SITE)/bin/jupyter-book build . --path-output . --quiet -W -n --keep-going > /dev/null || { rm -rf _build/.doctrees; exit 1; }
	@echo "The book is in $(CURDIR)/_build/html; open index.html there, or run: make serve"

pdf: $(SITE)/.pdf ## print the book into _build/course.pdf (needs Chromium)
	@$(SITE)/bin/python tools/pdf.py

serve: book ## build the site and show it at http://ADDRESS:PORT
	@echo "Serving at http://$(ADDRESS):$(PORT) (Ctrl-C stops)"
	@$(SITE)/bin/python -m http.server $(PORT) --bind $(ADDRESS) --directory _build/html

student: $(DEV)/.installed ## write the student edition into _build/student (work begun there is kept)
	@$(DEV)/bin/python tools/student.py $(LABS)

lab: student ## open JupyterLab on the student edition, labs/ (solutions) beside it
	@$(DEV)/bin/jupyter lab $(LAB_FLAGS) --ServerApp.root_dir="$(CURDIR)" \
		--LabApp.default_url="/lab/tree/_build/student/$(patsubst labs/%,%,$(firstword $(LABS)))"

labs: $(DEV)/.installed ## run labs again (cpu tier) and store their outputs, time and memory
	@$(DEV)/bin/python tools/labs.py $(LABS)

test: $(DEV)/.installed $(SITE)/.installed ## lint, types, tests, labs, student edition, book
	@$(DEV)/bin/python tools/check.py --jobs $(JOBS) --make "$(MAKE)" $(LABS)

bench: $(DEV)/.installed ## run benchmarks/
	@for file in $(sort $(wildcard benchmarks/[a-z]*.py)); do \
		echo "== $$file"; $(DEV)/bin/python "$$file" || exit 1; done

canary: $(DEV)/.installed ## run the labs in fresh environments, as on Colab, and record it for the site (hours, many GB)
	@$(DEV)/bin/python tools/canary.py --only "$(ONLY)" $(TORCH_INDEX) $(LABS)

# The standard library is enough for it, so that a fork is stamped before anything is set up.
stamp: | python ## write the repository's address and the version wherever they stand
	@$(PYTHON) tools/stamp.py $(if $(CHECK),--check $(if $(TAG),--tag "$(TAG)"),$(REPOSITORY))

publish: $(DEV)/.installed ## push the student edition to the branch student of REMOTE
	@$(DEV)/bin/python tools/publish.py --remote "$(REMOTE)"

bundle: $(DEV)/.installed book ## pack wheels, site, notebooks and data for a classroom without a network
	@$(DEV)/bin/python tools/bundle.py $(if $(CHECK),--check) $(TORCH_INDEX)

clean: ## remove what was built, _build/student too (environments stay; rm -r .venv removes them)
	@rm -rf _build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "error: '$(PYTHON)' is not Python 3.11 or newer; name one that is: make PYTHON=python3.12 …" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "error: '$(PYTHON)' cannot make environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

$(SITE)/.installed: pyproject.toml constraints-site.txt | python
	@echo "Setting up $(SITE) (the book; about a minute) …"
	@test -x $(SITE)/bin/python || $(PYTHON) -m venv $(SITE)
	@$(SITE)/bin/python $(PIP_INSTALL) --quiet -c constraints-site.txt -e '.[$(SITE_EXTRAS)]'
	@# Chapters' cells run in kernels of this machine, which would each warn that nothing is encrypted.
	@mkdir -p $(SITE)/etc/ipython
	@echo "c.IPKernelApp.log_level = 'ERROR'" > $(SITE)/etc/ipython/ipython_kernel_config.py
	@touch $@

$(SITE)/.pdf: $(SITE)/.installed
	@echo "Adding what prints the book to $(SITE) …"
	@$(SITE)/bin/python $(PIP_INSTALL) --quiet -c constraints-site.txt -e '.[$(SITE_EXTRAS),pdf]'
	@touch $@

# torch goes in alone and first, so that no other package's wish for it is heard before the pin is.
$(DEV)/.installed: pyproject.toml constraints.txt | python
	@echo "Setting up $(DEV) (labs and tests; a few minutes, mostly downloads) …"
	@test -x $(DEV)/bin/python || $(PYTHON) -m venv $(DEV)
	@$(DEV)/bin/python $(PIP_INSTALL) -c constraints.txt $(TORCH_INDEX) torch
	@$(DEV)/bin/python $(PIP_INSTALL) --quiet -c constraints.txt -e '.[$(DEV_EXTRAS)]'
	@touch $@
