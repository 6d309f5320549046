# The commands of the README. Each does its own set-up; what they need beyond Rust is listed in tools/xtask/packages.txt.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CARGO_TARGET_DIR ?= $(CURDIR)/target
export CARGO_TARGET_DIR := $(abspath $(CARGO_TARGET_DIR))
TERN_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/tern
export TERN_CACHE := $(abspath $(TERN_CACHE))
release := $(CARGO_TARGET_DIR)/release

PREFIX ?= /usr/local
DESTDIR ?=
programs := blockd tern wanem

# Both link RocksDB from the archive that is built once per machine; see docs/development.md.
xtask := cargo xtask
build_release := $(xtask) exec -- cargo build --release --locked $(addprefix --package ,$(programs))

.PHONY: help test demo bench build install clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

test: ## Run the gate: format, lints, documentation and every test this machine can run
	@tools/xtask/setup.sh tests
	@$(xtask) check

demo: ## Lose a site in front of your eyes: a VM comes back at the standby (two minutes after the build)
	@tools/xtask/setup.sh demo
	@$(build_release)
	@TERN_BIN_DIR=$(release) tests/demo/run.sh

bench: ## Measure speed and size; ARGS="…" goes to the bench program
	@tools/xtask/setup.sh demo
	@$(build_release)
	@TERN_BIN_DIR=$(release) $(xtask) exec -- cargo run --release --locked --package bench -- $(ARGS)

build: ## Build the release programs
	@tools/xtask/setup.sh build
	@$(build_release)

install: build ## Install programs, man pages, completions and the systemd unit below PREFIX (/usr/local)
	install -D --mode=755 --target-directory=$(DESTDIR)$(PREFIX)/sbin $(release)/blockd
	install -D --mode=755 --target-directory=$(DESTDIR)$(PREFIX)/bin $(release)/tern
	install -d $(DESTDIR)$(PREFIX)/share/man/man1 $(DESTDIR)$(PREFIX)/share/bash-completion/completions
	install -d $(DESTDIR)$(PREFIX)/share/zsh/site-functions $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d
	$(release)/tern man $(DESTDIR)$(PREFIX)/share/man/man1
	$(release)/tern completions bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/tern
	$(release)/tern completions zsh > $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_tern
	$(release)/tern completions fish > $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/tern.fish
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	sed 's|@PREFIX@|$(PREFIX)|' docs/blockd.service > $(DESTDIR)$(PREFIX)/lib/systemd/system/blockd.service
	test -e $(DESTDIR)/etc/tern/blockd.toml || install -D --mode=644 docs/blockd.toml $(DESTDIR)/etc/tern/blockd.toml

clean: ## Remove the build directory; the cache stays
	cargo clean
