"""LIBERO's pick-and-place tasks as environments: plans and predicates, a scripted expert, the simulator and its processes."""
