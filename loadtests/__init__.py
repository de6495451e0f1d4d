"""Load: the engine under real traffic. `bench` measures it beside its peers; README.md tells how."""
