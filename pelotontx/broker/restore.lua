-- Puts popped entries back where they came from, in their order.
-- KEYS: the list, then the timeout keys that were taken away.
-- ARGV: the least life of the list in ms if it has to be made anew (0 = for ever), then what is
--       left of each timeout in ms, then the entries in the order in which they were popped.
local timeouts = #KEYS - 1
local life = tonumber(ARGV[1])
local is_new = redis.call('EXISTS', KEYS[1]) == 0
for i = 1, timeouts do
  redis.call('SET', KEYS[1 + i], ARGV[1 + i], 'PX', ARGV[1 + i])
  life = life > 0 and math.max(life, 2 * tonumber(ARGV[1 + i])) or 0
end
for i = #ARGV, timeouts + 2, -1 do
  redis.call('RPUSH', KEYS[1], ARGV[i])
end
if is_new and life > 0 then
  redis.call('PEXPIRE', KEYS[1], life)
end
return #ARGV - 1 - timeouts
