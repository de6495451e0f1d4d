"""Command line of the load tests: `python -m loadtests [PROFILE]`, as root, from the root of the repository.

Brings up the lab (loadtests/lab.py), runs locust headless in it, and writes into --out what locust and the engine have to say:
locust.html, locust_*.csv, engine.csv, and run.html, which joins them. Exit codes: 0 all objectives kept; 1 not; 2 something
is missing or an option is wrong; 3 not root.
"""

import argparse
import json
import os
import re
import sys
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

from engine.demo.lab import LabError
from engine.demo.service import ServiceError
from loadtests.checks import after_run, memory_growth, shedding
from loadtests.lab import TARGET, load_lab
from loadtests.page import Verdict, write_page
from loadtests.profiles import PROFILES, Profile
from loadtests.sampler import Sample, Sampler, write_samples
from loadtests.shapes import SPIKE

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
STOP_TIMEOUT = 15  # seconds that users get to finish what they do


def main() -> int:
    """Run a profile; return the exit code."""
    options = _options()
    profile = PROFILES[options.profile]
    if find_spec("locust") is None:
        print("loadtests: locust is not installed: pip install '.[load]'", file=sys.stderr)
        return 2
    if os.geteuid() != 0:
        print("loadtests: network namespaces and tun devices take root", file=sys.stderr)
        return 3
    if profile.shape in (SPIKE, "worker-crash") and options.processes > 1:
        print(
            f"loadtests: {options.profile} looks at each request, so it is of one process: leave --processes out",
            file=sys.stderr,
        )
        return 2
    folder = options.out or Path("load-results", datetime.now().strftime(f"%Y-%m-%d-%H%M%S-{options.profile}"))
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        verdicts = _run(profile, options, folder)
    except (LabError, ServiceError) as error:
        print(f"loadtests: {error}", file=sys.stderr)
        return 1
    users = options.users or profile.users
    title = f"{options.profile}: {users} users, {options.run_time or profile.run_time}, {options.workers} workers"
    page = write_page(folder, title=title, verdicts=verdicts)
    for verdict in verdicts:
        print(f"{'ok    ' if verdict.good else 'MISSED'} {verdict.sentence}")
    print(f"the whole run on one page: {page}")
    return 0 if all(verdict.good for verdict in verdicts) else 1


def _run(profile: Profile, options: argparse.Namespace, folder: Path) -> list[Verdict]:
    """Run locust in a lab and check the engine afterwards. Raises LabError, ServiceError."""
    with load_lab(workers=options.workers, socks_servers=profile.socks_servers) as lab:
        sampler = Sampler(lab)
        before = sampler.take()
        sampler.start()
        try:
            code = lab.run(_locust(profile, options, folder, lab.run_dir))
        finally:
            sampler.stop()
        verdicts = after_run(
            sampler,
            before,
            deaths=profile.shape == "worker-crash",
            until_no_mapping=profile.until_no_mapping,
            misses_scrapes=profile.shape == SPIKE,
        )
        write_samples(sampler.samples, folder / "engine.csv")
        (folder / "engine.log").write_text(lab.engine.output)
    if profile.steady_memory:
        verdicts.append(memory_growth(sampler.samples))
    return [*_objectives(folder / "objectives.json", code, sampler.samples), *verdicts]


def _locust(profile: Profile, options: argparse.Namespace, folder: Path, run_dir: Path) -> list[str]:
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--host", f"http://{TARGET}", "--headless"]
    command += ["-u", str(options.users or profile.users), "-r", str(options.spawn_rate or profile.spawn_rate)]
    command += ["-t", options.run_time or profile.run_time, "--stop-timeout", str(STOP_TIMEOUT), "--only-summary"]
    command += ["--csv", str(folder / "locust"), "--csv-full-history", "--html", str(folder / "locust.html")]
    command += ["--verdict", str(folder / "objectives.json"), "--engine-run-dir", str(run_dir)]
    if profile.shape:
        command += ["--shape", profile.shape]
    if options.processes > 1:
        command += ["--processes", str(options.processes)]
    for name in ("slo_p95", "slo_loss"):
        if getattr(options, name) is not None:
            command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    return [*command, *(options.classes or profile.classes)]


def _objectives(path: Path, code: int, samples: list[Sample]) -> list[Verdict]:
    """What locust's own judge has found; a locust that ended without a word is a miss."""
    if not path.exists():
        return [Verdict(f"locust ended with exit code {code} and judged nothing", good=False)]
    found = json.loads(path.read_text())
    verdicts = [Verdict(sentence, good=False) for sentence in found["missed"]]
    verdicts += [Verdict(sentence, good=True) for sentence in found["kept"]]
    if found.get("spike"):
        verdicts.append(shedding(found["spike"], samples))
    if code and not found["missed"]:
        verdicts.append(Verdict(f"locust ended with exit code {code}", good=False))
    return verdicts


def _options() -> argparse.Namespace:
    listing = "\n".join(f"  {name:13} {profile.purpose}" for name, profile in PROFILES.items())
    parser = argparse.ArgumentParser(
        prog="python -m loadtests",
        description=(__doc__ or "").partition("\n")[0],
        epilog=f"profiles:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("profile", nargs="?", choices=PROFILES, default="load", metavar="PROFILE", help="see below; default load")
    add("-u", "--users", type=_at_least_one, help="at most at a time")
    add("-r", "--spawn-rate", type=float, help="that may come or go in a second")
    add("-t", "--run-time", type=_time, help="such as 30s, 10m")
    add("--workers", type=_at_least_one, default=2, help="worker processes of the engine, default 2")
    add("--processes", type=_at_least_one, default=1, help="of locust: more than 1 is a master and as many workers")
    add("--classes", nargs="*", help="user classes, see loadtests/users")
    add("--slo-p95", type=float, metavar="MS", help="95 %% of small requests are answered within")
    add("--slo-loss", type=float, metavar="PERCENT", help="datagrams that may be lost")
    add("--out", type=Path, metavar="DIR", help="default load-results/DATE-PROFILE")
    return parser.parse_args()


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("a whole number from 1")
    return number


def _time(text: str) -> str:
    if not re.fullmatch(r"(\d+h)?(\d+m)?(\d+s)?|\d+", text) or not text:
        raise argparse.ArgumentTypeError("a time such as 90s, 10m or 1h30m")
    return text


if __name__ == "__main__":
    sys.exit(main())
