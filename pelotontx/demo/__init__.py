"""The demo: three functions to call, and a page to call them from.

`pelotontx.demo.callee:callee` is an ordinary callee, and `pelotontx.demo.page:routes` makes an
ordinary `App`: a server takes them as it takes a user's own code, by dotted names.
"""
