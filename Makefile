.PHONY: demo test check bench crash flows load spike hold soak clean

demo:  ## the whole path on an embedded proxy, in private namespaces
	bash .ci/demo

test:  ## every test; needs root for the end-to-end ones
	bash .ci/test

check:  ## what CI runs: ruff, mypy, tests
	bash .ci/run

bench:  ## the engine beside its peers; about 30 minutes
	bash .ci/setup bench
	.venv/bin/python -m loadtests.bench

crash:  ## kills and breaks everything, again and again; ends with one table; an hour and more, needs root
	bash .ci/setup test
	.venv/bin/python -m loadtests.crash

load:  ## locust in a lab of its own, a minute; writes load-results/
	bash .ci/setup load
	.venv/bin/python -m loadtests load

spike:  ## twice what the machine carries, and back; two minutes
	bash .ci/setup load
	.venv/bin/python -m loadtests spike

hold:  ## 10,000 connections held for ten minutes; eleven minutes
	bash .ci/setup load
	.venv/bin/python -m loadtests hold

flows:  ## 50,000 flows and 4,000 UDP mappings at once; a few minutes, needs root
	bash .ci/setup test
	.venv/bin/python -m loadtests.flows

soak:  ## half an hour of everything; memory must stay flat; forty minutes
	bash .ci/setup load
	.venv/bin/python -m loadtests soak

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis bench-results load-results
