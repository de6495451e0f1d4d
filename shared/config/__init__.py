"""What a worker is told. Frozen: a change is a new value, sent over the control channel.

worker     WorkerConfig (once, at the start) and its parts; Policy, which a reload replaces
outbound   where flows leave
route      which flow takes which outbound
dns        the DNS service

The master makes all of it from the command line or the user's file (engine/config); what stands here is complete and checked.
"""

from shared.config.dns import *  # noqa: F403
from shared.config.outbound import *  # noqa: F403
from shared.config.route import *  # noqa: F403
from shared.config.worker import *  # noqa: F403
