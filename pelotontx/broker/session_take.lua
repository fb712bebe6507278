-- Ends a session.
-- KEYS: the session.
-- Returns its fields and values, none if there is no such session.
local fields = redis.call('HGETALL', KEYS[1])
redis.call('UNLINK', KEYS[1])
return fields
