"""Turns a process of the engine into one that runs on a Mac, as far as it can tell.

Put this directory on PYTHONPATH and set TUNLOOM_MAC to the socket of a KernelServer; no line of the product knows of it.
"""

import os
import sys
from pathlib import Path

if "TUNLOOM_MAC" in os.environ:
    sys.path.append(str(Path(__file__).parents[4]))  # to find tests.support; behind everything that the product imports
    from tests.support.darwin.mac import become_mac

    become_mac(os.environ["TUNLOOM_MAC"])
