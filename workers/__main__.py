"""`python -m workers CONTROL POOL TUN DOORBELL MASTER_PID`: inherited descriptors; started by engine/supervisor.py."""

import sys

from workers.worker import run

if __name__ == "__main__":
    sys.exit(run(*map(int, sys.argv[1:])))
