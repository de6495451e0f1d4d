"""`python -m workers MASTER_PID CONTRACT CONTROL DOORBELL POOL TUN [FAKE_IP]`: started by engine/worker_process.py.

CONTRACT is the master's (shared/contract.py); what follows are inherited descriptors.
"""

import sys

from workers.worker import run

if __name__ == "__main__":
    pid, contract, *descriptors = sys.argv[1:]
    sys.exit(run(int(pid), contract, *map(int, descriptors)))
