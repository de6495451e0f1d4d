"""engine/service/launchd.py: the bytes of the property list."""

import plistlib

from typer.testing import CliRunner

from engine.cli import app
from engine.service.launchd import launchd_plist

EXPECTED = b"""<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
\t<key>ExitTimeOut</key>
\t<integer>30</integer>
\t<key>HardResourceLimits</key>
\t<dict>
\t\t<key>NumberOfFiles</key>
\t\t<integer>65536</integer>
\t</dict>
\t<key>KeepAlive</key>
\t<dict>
\t\t<key>SuccessfulExit</key>
\t\t<false/>
\t</dict>
\t<key>Label</key>
\t<string>io.tunloom.engine</string>
\t<key>ProcessType</key>
\t<string>Interactive</string>
\t<key>ProgramArguments</key>
\t<array>
\t\t<string>/opt/tunloom/bin/engine</string>
\t\t<string>start</string>
\t\t<string>--proxy</string>
\t\t<string>socks5://127.0.0.1:1080</string>
\t</array>
\t<key>RunAtLoad</key>
\t<true/>
\t<key>SoftResourceLimits</key>
\t<dict>
\t\t<key>NumberOfFiles</key>
\t\t<integer>65536</integer>
\t</dict>
\t<key>StandardErrorPath</key>
\t<string>/var/log/tunloom.log</string>
\t<key>StandardOutPath</key>
\t<string>/var/log/tunloom.log</string>
\t<key>ThrottleInterval</key>
\t<integer>10</integer>
\t<key>WorkingDirectory</key>
\t<string>/</string>
</dict>
</plist>
"""


def test_list_is_exactly_this() -> None:
    assert launchd_plist(["/opt/tunloom/bin/engine"], ["--proxy", "socks5://127.0.0.1:1080"]) == EXPECTED


def test_what_means_something_in_xml_is_escaped() -> None:
    url = "socks5://user:<a&b>@127.0.0.1:1080"
    assert plistlib.loads(launchd_plist(["/e"], ["--proxy", url]))["ProgramArguments"] == [
        "/e",
        "start",
        "--proxy",
        url,
    ]


def test_command_prints_it_with_the_options_of_start() -> None:
    done = CliRunner().invoke(app, ["service", "plist", "--", "--proxy", "socks5://127.0.0.1:1080", "--workers", "2"])
    assert done.exit_code == 0
    words = plistlib.loads(done.stdout_bytes)["ProgramArguments"]
    assert words[-6:] == ["engine", "start", "--proxy", "socks5://127.0.0.1:1080", "--workers", "2"]
    assert words[0].startswith("/")


def test_password_is_refused() -> None:
    done = CliRunner().invoke(app, ["service", "plist", "--", "--proxy", "socks5://alice:s3cret@127.0.0.1:1080"])
    assert done.exit_code == 2 and "can be read by every user" in done.stderr and "s3cret" not in done.output
