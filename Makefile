# rfs: `make help` lists what can be made.

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
COMMIT  ?= $(shell git rev-parse HEAD 2>/dev/null)
PREFIX  ?= /usr/local
DESTDIR ?=
TAGS    ?=

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c

# The version comes from git here, once, so that a build does not depend on what git
# thinks of the owner of the tree.
export GOFLAGS := $(GOFLAGS) -buildvcs=false
LDFLAGS := -s -w -X rfs/internal/version.version=$(VERSION) -X rfs/internal/version.commit=$(COMMIT)

# How long `go test` may take a package, and how many inputs each fuzz target gets.
TIMEOUT  ?= 15m
FUZZ     ?= 3000x
# Packages tested at once: each starts a whole cluster or a crash test of its own.
PARALLEL ?= 2
PKG      ?= ./...

LINT_VERSION := v2.15.0
LINT := .cache/golangci-lint-$(LINT_VERSION)

.PHONY: help build install demo deps test unit fuzz vet lint fmt formats man clean
.DEFAULT_GOAL := build

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build bin/rfs and bin/rfsd, static, without cgo
	CGO_ENABLED=0 go build -trimpath -tags '$(TAGS)' -ldflags '$(LDFLAGS)' -o bin/ ./cmd/...

deps: ## install what the tests need and this machine lacks
	scripts/deps.sh test

demo: ## a cluster in one process: copy, verify, lose two targets, verify again
	@scripts/deps.sh demo
	@$(MAKE) --no-print-directory build
	@bin/rfs demo

test: vet ## vet, build without cgo, all tests with the race detector (and the seeds of the fuzz targets)
	CGO_ENABLED=0 go build ./...
	@$(MAKE) --no-print-directory unit

unit: ## the tests only, with the race detector; PKG=./client narrows them
	go test -race -p $(PARALLEL) -timeout $(TIMEOUT) -json $(PKG) | go run ./scripts/testsum

fuzz: ## feed each fuzz target FUZZ inputs (3000x), or for a time (FUZZ=30s)
	scripts/fuzz.sh $(FUZZ)

vet: ## go vet
	CGO_ENABLED=0 go vet ./...

lint: $(LINT) ## golangci-lint, built once at its pinned version
	$(LINT) run ./...

$(LINT):
	GOBIN=$(CURDIR)/.cache/build go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINT_VERSION)
	mv .cache/build/golangci-lint $@

fmt: ## gofmt all sources
	gofmt -s -w $$(git ls-files '*.go' | grep -v '\.pb\.go$$')

formats: ## docs/formats.md, from the comments of the packages
	go run ./scripts/formats > docs/.formats.md && mv docs/.formats.md docs/formats.md

man: build ## the man pages and shell completions, into bin/
	bin/rfs man bin/man
	bin/rfsd man bin/man
	mkdir -p bin/completion
	for s in bash zsh fish; do bin/rfs completion $$s > bin/completion/rfs.$$s && bin/rfsd completion $$s > bin/completion/rfsd.$$s || exit 1; done

install: man ## install below DESTDIR and PREFIX (/usr/local), and /sbin/mount.rfs
	install -D -m 755 bin/rfs $(DESTDIR)$(PREFIX)/bin/rfs
	install -D -m 755 bin/rfsd $(DESTDIR)$(PREFIX)/sbin/rfsd
	install -d $(DESTDIR)/sbin
	ln -sf $(PREFIX)/bin/rfs $(DESTDIR)/sbin/mount.rfs
	install -d $(DESTDIR)$(PREFIX)/share/man/man1 $(DESTDIR)$(PREFIX)/share/man/man8
	install -m 644 bin/man/*.1 $(DESTDIR)$(PREFIX)/share/man/man1/
	install -m 644 bin/man/*.8 $(DESTDIR)$(PREFIX)/share/man/man8/
	install -D -m 644 bin/completion/rfs.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/rfs
	install -D -m 644 bin/completion/rfsd.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/rfsd
	install -D -m 644 examples/systemd/rfsd.service $(DESTDIR)/etc/systemd/system/rfsd.service

include scripts/rig/rig.mk

clean: ## remove what was built
	rm -rf bin .cache
