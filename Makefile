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
to = $(DESTDIR)$(PREFIX)
# Made from the programs' own definitions of their command lines.
pages = $(release)/pages
programs := blockd tern wanem

# Both link RocksDB from the archive that is built once per machine; see docs/development.md.
xtask := cargo xtask
build_release := $(xtask) exec -- cargo build --release --locked $(addprefix --package ,$(programs))

.PHONY: help test demo bench build pages install deb clean

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

pages: build
	@rm -rf $(pages) && mkdir -p $(pages)
	@$(release)/blockd-pages $(pages)
	@$(release)/tern man $(pages)
	@gzip --best --no-name $(pages)/*.[18]
	@$(release)/tern completions bash > $(pages)/tern.bash
	@$(release)/tern completions zsh > $(pages)/_tern
	@$(release)/tern completions fish > $(pages)/tern.fish

install: pages ## Install programs, man pages, completions and systemd units below PREFIX (/usr/local)
	install -D --mode=755 --target-directory=$(to)/sbin $(release)/blockd
	install -D --mode=755 --target-directory=$(to)/bin $(release)/tern
	install -D --mode=644 --target-directory=$(to)/share/man/man1 $(pages)/*.1.gz
	install -D --mode=644 --target-directory=$(to)/share/man/man8 $(pages)/*.8.gz
	install -D --mode=644 $(pages)/tern.bash $(to)/share/bash-completion/completions/tern
	install -D --mode=644 $(pages)/blockd.bash $(to)/share/bash-completion/completions/blockd
	install -D --mode=644 --target-directory=$(to)/share/zsh/site-functions $(pages)/_*
	install -D --mode=644 --target-directory=$(to)/share/fish/vendor_completions.d $(pages)/*.fish
	install -D --mode=644 --target-directory=$(to)/lib/systemd/system blockd/package/blockd.service blockd/package/blockd.socket
	sed --in-place 's|=/usr/sbin|=$(PREFIX)/sbin|' $(to)/lib/systemd/system/blockd.service
	install -D --mode=644 blockd/package/tern.sysusers $(to)/lib/sysusers.d/tern.conf
	install -D --mode=644 blockd/package/tern.tmpfiles $(to)/lib/tmpfiles.d/tern.conf
	test -e $(DESTDIR)/etc/tern/blockd.toml || install -D --mode=644 blockd/package/blockd.toml $(DESTDIR)/etc/tern/blockd.toml

deb: pages ## Build the Debian package, and test it: contents, lintian, an installation into an empty root
	@$(xtask) exec -- $$($(xtask) tool cargo-deb) --package blockd --no-build --strip --locked --output $(release)/tern.deb
	@tests/package/check.sh $(release)/tern.deb

clean: ## Remove the build directory; the cache stays
	cargo clean
