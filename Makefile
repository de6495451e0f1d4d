.PHONY: demo test check bench clean

demo:  ## the whole path on an embedded proxy, in private namespaces
	bash .ci/demo

test:  ## every test; needs root for the end-to-end ones
	bash .ci/test

check:  ## what CI runs: ruff, mypy, tests
	bash .ci/run

bench:  ## the engine beside its peers; about 30 minutes
	bash .ci/setup bench
	.venv/bin/python -m loadtests.bench

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis bench-results
