-- Reads a session and puts its end off, not with each request: only when that gains something.
-- KEYS: the session.
-- ARGV: how long it may live from now on in ms, the gain in ms from which on that is written.
-- Returns its fields and values, none if there is no such session.
local left = redis.call('PTTL', KEYS[1])
if left == -2 then
  return {}
end
-- Without an end (-1) it comes from a program that sets none.
if left == -1 or tonumber(ARGV[1]) - left > tonumber(ARGV[2]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[1])
end
return redis.call('HGETALL', KEYS[1])
