"""Chaos: run a pipeline while its processes are killed, hung, slowed or filled, and compare the bytes."""
