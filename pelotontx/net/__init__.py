"""Twisted transports and drivers; nothing here knows a word of the product."""
