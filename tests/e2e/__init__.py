"""End to end: `engine start` on a real tun, real proxies, real programs, in network namespaces made by the tests.

    sudo .venv/bin/python -m pytest tests/e2e                                      all of it, about five minutes
    sudo .venv/bin/python -m pytest tests/e2e -k "1_gib and down" -s               one test, with what it prints
    sudo .venv/bin/python -m pytest tests/e2e/test_upstreams.py -k "dante or ssh"

Without root, or without /dev/net/tun, they are skipped. A program that is not installed skips its test and names the
package; `.ci/setup test` installs all of them. Nothing of the machine is changed: see tests/support/netns.py for the
namespaces, and `no_leaks` in tests/conftest.py for what each test must not leave behind.
"""
