-- Puts popped entries back where they came from, in their order.
-- KEYS: the list, then the timeout keys that were taken away.
-- ARGV: the least life of the list in ms, then what is left of each timeout in ms, then the entries
--       in the order in which they were popped.
local timeouts = #KEYS - 1
for i = 1, timeouts do
  redis.call('SET', KEYS[1 + i], ARGV[1 + i], 'PX', ARGV[1 + i])
end
for i = #ARGV, timeouts + 2, -1 do
  redis.call('RPUSH', KEYS[1], ARGV[i])
end
if redis.call('PTTL', KEYS[1]) == -1 then
  redis.call('PEXPIRE', KEYS[1], ARGV[1])
end
return #ARGV - 1 - timeouts
