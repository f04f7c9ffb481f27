"""The command line `teachonce`: parse, call one stage, render.

It computes nothing, and it imports no heavy library before a stage really runs.
"""

from teachonce.cli.app import main

__all__ = ["main"]
