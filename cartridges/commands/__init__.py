"""One command, one file: `cartridges a b` is `command` in `cartridges/commands/a_b.py`.

A command parses arguments, calls one verb and prints; it imports what is heavy inside its function.
"""
