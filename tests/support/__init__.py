"""What several tests need: packet builders, peers, namespaces."""
