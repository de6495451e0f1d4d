"""A Mac for tests: what its kernel says, as bytes, and a kernel that answers our calls."""
