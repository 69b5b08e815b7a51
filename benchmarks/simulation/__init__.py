"""Scripted servers in virtual time around the pure core: a seed draws everything, so that every run can be repeated."""
