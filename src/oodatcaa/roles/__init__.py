"""Planner, builder, tester, refiner, integrator: take a claim, return a proposal."""
