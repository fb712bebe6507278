-- Takes the timeout keys of popped entries away.
-- KEYS: a timeout key for each entry.
-- Returns the milliseconds that each had left; 0 or less: its time is over.
local left = {}
for i, key in ipairs(KEYS) do
  left[i] = redis.call('PTTL', key)
  redis.call('DEL', key)
end
return left
