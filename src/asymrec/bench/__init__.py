"""A grid of fits from one file: `asymrec bench CONFIG`.

plan: the cells that a file spells out; plan_file: the file, read and checked; run: a cell, a process; figures: what came out;
table, export: written down.
"""
