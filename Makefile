# make run    serve the demo on http://127.0.0.1:8080/ (another port: make run PORT=9090)
# make test   install what the tests need, Debian packages included, and run them
# make lint   style and types
# make bench  the benchmarks
# make conformance  all of Autobahn's WebSocket cases (a short form is in make test)
# make docker-check  build docker/'s image in a clean root, without a docker engine, and run it (root)
# make chaos  the kill tests in full (a short form is in make test)
# make slow  slow attacks on the HTTP server in full (a short form is in make test)
# make clean  remove what the others made

PORT ?= 8080
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A process a core; each file's tests stay together, since they share servers.
PARALLEL := --numprocesses auto --dist loadfile

.PHONY: run test test-reactors lint bench clean debian conformance chaos docker-check slow

$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -c "import ensurepip" 2>/dev/null || tests/install-debian-packages python3-venv
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable . \
		--config-settings editable_mode=compat
	touch $@

$(VENV)/.tests: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[test,dev]" \
		--config-settings editable_mode=compat
	touch $@

run: $(VENV)/.installed
	exec $(BIN)/twistd --nodaemon --pidfile= peloton --config examples/demo/peloton.toml \
		--listen tcp:$(PORT):interface=127.0.0.1

debian:
	tests/install-debian-packages redis-server chromium nodejs nghttp2-client curl openssl \
		slowhttptest wrk nginx-light

test: debian $(VENV)/.tests
	$(BIN)/python -m pytest $(PARALLEL) tests/unit tests/integration
	$(BIN)/trial tests.unit.web.test_garbage
	$(MAKE) --no-print-directory test-reactors
	node --test clients/js/test/*.test.js

# The short set that also runs on Twisted's own reactors.
test-reactors: $(VENV)/.tests
	PELOTON_TEST_REACTOR=epoll $(BIN)/python -m pytest $(PARALLEL) -m reactors tests/integration
	PELOTON_TEST_REACTOR=asyncio $(BIN)/python -m pytest $(PARALLEL) --reactor asyncio \
		-m reactors tests/integration

lint: $(VENV)/.tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint docker/Dockerfile
	$(BIN)/shellcheck docker/entrypoint docker/prove

docker-check:
	tests/install-debian-packages debootstrap buildah podman runc iproute2
	docker/prove

conformance: $(VENV)/.tests
	PELOTON_CONFORMANCE=all $(BIN)/python -m pytest tests/integration/test_conformance.py

chaos: debian $(VENV)/.tests
	$(BIN)/python -m pytest tests/chaos/seeds.py

slow: debian $(VENV)/.tests
	PELOTON_SLOW=all $(BIN)/python -m pytest --capture=no tests/integration/test_slow_http.py

bench: debian $(VENV)/.tests
	$(BIN)/python benchmarks/http_server.py
	$(BIN)/python benchmarks/http_memory.py
	$(BIN)/python benchmarks/rpc.py
	$(BIN)/python benchmarks/fanout.py
	$(BIN)/python benchmarks/gateway.py
	$(BIN)/python benchmarks/upload.py

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
