"""Calls and events behind one interface: in memory or on Redis."""
