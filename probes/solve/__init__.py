"""Shared linear algebra of probes: arrays in, arrays out; one factorisation serves every label and penalty."""
