"""Optimizer rules, one function a file, each tested alone."""
