"""`engine demo`, and the parts it is made of: a lab of network namespaces, servers in it, and load. The tests use them too."""
