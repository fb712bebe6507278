"""Redis, one server or many: `client.redis_client` gives what brokers see, by a URL.

client        the face, and which of the three stands behind a URL
single        one server
sentinel      the master of Sentinels
cluster       all masters of a cluster
topology      which of them holds which slot
errand        a command on its way through redirects
link          a connection that stays up
connection    a connection: commands out, replies in, events
ask           short questions on connections of their own
script        Lua scripts by their digest
address       URLs
"""
