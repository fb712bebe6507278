"""The original's programs, modelled on their wire: a server, a callee, a load tester.

They share nothing with the package; each is a program (``python -m tests.support.original.callee``)
with threads and blocking connections, as the original has goroutines.
"""
