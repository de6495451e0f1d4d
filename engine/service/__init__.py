"""The engine as a service of the machine: what the system's own manager of services is told."""
