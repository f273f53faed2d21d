"""`workbench demo`: the whole thread on a real model — read, decode, probe, patch, steer, look."""
