"""Volumes larger than memory: blocks, and the processes and machines that work on them."""
