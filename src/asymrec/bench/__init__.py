"""A grid of fits from one file: `asymrec bench CONFIG`.

plan: the file and its cells; run: a cell, a process; figures: what came out; table, export: written down.
"""
