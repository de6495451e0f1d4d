"""`python -m engine.http MASTER_PID CHANNEL LISTENER...`: inherited descriptors; started by engine/http/process.py."""

import sys

from engine.http.server import run

if __name__ == "__main__":
    master, channel, *listeners = map(int, sys.argv[1:])
    sys.exit(run(master, channel, listeners))
