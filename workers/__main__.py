"""`python -m workers MASTER_PID CONTROL DOORBELL POOL TUN [FAKE_IP]`: inherited descriptors; started by engine/supervisor.py."""

import sys

from workers.worker import run

if __name__ == "__main__":
    sys.exit(run(*map(int, sys.argv[1:])))
