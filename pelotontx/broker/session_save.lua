-- Writes what has changed in a session.
-- KEYS: the session.
-- ARGV: 1 if it must exist already, how long it may live from now on in ms, how many fields are
--       set, then each of these and its value, then the fields that are removed.
-- Returns 0 if it should exist and does not: then nothing is written.
if ARGV[1] == '1' and redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
local removed = 4 + 2 * ARGV[3]
if removed > 4 then
  redis.call('HSET', KEYS[1], unpack(ARGV, 4, removed - 1))
end
if removed <= #ARGV then
  redis.call('HDEL', KEYS[1], unpack(ARGV, removed))
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
