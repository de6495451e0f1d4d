"""A command whose output is read while it runs."""

import os
import signal
import sys

import pytest

from engine.demo.service import TAIL_MAX, Service, ServiceError

pytestmark = pytest.mark.e2e


def python(code: str, **options: tuple[int, ...]) -> Service:
    return Service("service", [sys.executable, "-u", "-c", code], **options)


def test_wait_for_returns_the_line() -> None:
    with python("print('one'); print('two 2'); print('three'); input()") as service:
        assert service.wait_for("two", 10) == "two 2"
        assert service.next_line(10) == "three"


def test_stderr_is_read_as_well() -> None:
    with python("import sys; print('oops', file=sys.stderr)") as service:
        assert service.next_line(10) == "oops"
        assert service.next_line(10) is None


def test_wait_for_a_command_that_ends_too_early_tells_what_it_said() -> None:
    with python("raise SystemExit('no such luck')") as service, pytest.raises(ServiceError) as failed:
        service.wait_for("ready", 10)
    assert "exit code 1" in str(failed.value) and "no such luck" in str(failed.value)


def test_wait_for_a_silent_command_gives_up() -> None:
    with (
        python("import signal; signal.pause()") as service,
        pytest.raises(ServiceError, match=r"service: .* It said nothing"),
    ):
        service.wait_for("ready", 0.1)


def test_stop_sends_sigterm_and_returns_the_exit_code() -> None:
    code = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(5)); print('up'); signal.pause()"
    service = python(code)
    service.wait_for("up", 10)
    assert service.stop() == 5
    assert service.stop() == 5


def test_stop_kills_who_ignores_it() -> None:
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up')\nwhile True: signal.pause()"
    service = python(code)
    service.wait_for("up", 10)
    assert service.stop(timeout=0.1) == -signal.SIGKILL


def test_output_keeps_the_last_lines_only() -> None:
    with python(f"for i in range({TAIL_MAX * 3}): print(i)") as service:
        service.wait_for(str(TAIL_MAX * 3 - 1), 10)
        assert service.output.splitlines() == [str(i) for i in range(TAIL_MAX * 2, TAIL_MAX * 3)]


def test_pass_fds_are_inherited() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"secret\n")
    os.close(writer)
    try:
        with python(f"import os; print(os.read({reader}, 100))", pass_fds=(reader,)) as service:
            assert service.next_line(10) == repr(b"secret\n")
    finally:
        os.close(reader)
