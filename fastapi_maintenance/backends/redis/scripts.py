"""What runs inside Redis: each step that must be atomic is one script, and every lease is judged by Redis' own clock.

Five keys under one hash tag, so that they are together in a cluster:

- `state`, a hash: the document, its `revision`, its `stamp` (a name for one write), the `line` that revisions belong
  to (a new one begins when the store was empty), and the clock: `era`, `offset`, `seen`, `born`, `run`.
- `holds`, a sorted set: hold -> end of its lease.
- `workers`, a sorted set: worker -> end of its lease.
- `acks`, a hash: worker -> "until idle hold,hold": "until then I refuse because of these holds"; `idle` is 1 when
  nothing is in flight there.
- `records`, a hash: worker -> "number document": its last beat's number, and what it says of itself.

**The clock** is Redis' time plus an offset, in milliseconds. It never goes back, and it never goes on by more than a
part of a lease between two looks: a longer gap means that the store was away (stopped, restarted, failed over) or that
its time was set, and nobody's lease runs out for that. Each such correction begins a new *era*, in which no promise
counts that was given in an earlier one, for a worker counts by its own clock how long it keeps its promise.

**Registers that may be incomplete.** Redis may come back without its last second, and an emptied store knows nobody.
`born` is when the register began or the server changed; a drain says yes only when that is so long ago that every
worker in contact has been heard since.
"""

import hashlib
from dataclasses import dataclass, field

_CLOCK = """
local STATE, HOLDS, WORKERS, ACKS, RECORDS = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local FRESH, ERA, EXPECTED, LEAP, SLACK = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local KNOWN = ARGV[6]

local time = redis.call('TIME')
local raw = time[1] * 1000 + math.floor(time[2] / 1000)
local stored = redis.call('HMGET', STATE, 'era', 'offset', 'seen')
local era, offset, seen = stored[1], tonumber(stored[2] or 0), tonumber(stored[3] or raw)
local now = raw + offset

local function number(value)
  return string.format('%.0f', value)
end

-- The time was set back: seen by the store, or by a caller who counted meanwhile.
if era and EXPECTED >= 0 and ERA == era and EXPECTED - now > SLACK then now = EXPECTED end
if now < seen then now = seen end
if LEAP >= 0 and now > seen + LEAP then now = seen + LEAP end

local function begin_era()
  era = FRESH
  -- What a full store refuses comes first, so that a script does all or nothing.
  redis.call('HSET', STATE, 'era', era)
  redis.call('DEL', ACKS)
end

local function server()
  return string.match(redis.call('INFO', 'server'), 'run_id:(%w+)') or ''
end

-- An emptied store asks those who know something to write it again, and not only at their next beat.
local function call()
  redis.call('PUBLISH', (string.gsub(STATE, 'state$', 'news')), '')
end

local function tick()
  if not era then
    begin_era()
    redis.call('HSET', STATE, 'born', number(now), 'run', server())
    call()
  elseif now ~= raw + offset then
    begin_era()
  end
  redis.call('HSET', STATE, 'offset', number(now - raw), 'seen', number(now))
end

-- Another server than the one that was here may have forgotten the last writes.
local function settle()
  local run = server()
  if redis.call('HGET', STATE, 'run') ~= run then
    begin_era()
    redis.call('HSET', STATE, 'born', number(now), 'run', run)
  end
end

-- What somebody took a part of is damaged, and neither nothing nor what is known.
local function named(stamp)
  return stamp or redis.call('HGET', STATE, 'line') and '-' or ''
end

local function reply(done)
  local found = redis.call('HMGET', STATE, 'line', 'revision', 'stamp')
  local stamp = named(found[3])
  local document = stamp ~= KNOWN and (redis.call('HGET', STATE, 'document') or '-') or ''
  local leases = {}
  local alive = redis.call('ZRANGEBYSCORE', HOLDS, '(' .. number(now), '+inf', 'WITHSCORES')
  for i = 1, #alive, 2 do
    leases[#leases + 1] = alive[i]
    leases[#leases + 1] = number(alive[i + 1] - now)
  end
  return {done, number(now), era or '', found[1] or '', found[2] or '0', stamp, document, leases}
end
"""

_LOOK = """
-- A store that is full can be read all the same.
if era and LEAP >= 0 then pcall(tick) end
return reply(1)
"""

_CALL = """
if not era then call() end
return 1
"""

_BEAT = """
local id, sent, joins, lease = ARGV[7], tonumber(ARGV[8]), ARGV[9], tonumber(ARGV[10])
local promise, record = ARGV[11], ARGV[12]
tick()
if joins == '1' then settle() end
local last = redis.call('HGET', RECORDS, id)
if last and tonumber(string.match(last, '^%d+')) > sent then return reply(0) end
redis.call('ZADD', WORKERS, number(now + lease), id)
redis.call('HSET', RECORDS, id, number(sent) .. ' ' .. record)
if promise ~= '' and ERA == era then
  redis.call('HSET', ACKS, id, promise)
else
  redis.call('HDEL', ACKS, id)
end
return reply(1)
"""

_GOODBYE = """
local id, sent = ARGV[7], tonumber(ARGV[8])
local last = redis.call('HGET', RECORDS, id)
-- One that was held up on its way, and whose worker is back, strikes nobody off.
if last and tonumber(string.match(last, '^%d+')) > sent then return 0 end
for _, key in ipairs({ACKS, RECORDS}) do redis.call('HDEL', key, id) end
redis.call('ZREM', WORKERS, id)
return 1
"""

_CHANGE = """
local before, stamp, line, revision, document = ARGV[7], ARGV[8], ARGV[9], ARGV[10], ARGV[11]
local lease, taken, kept, channel, news = tonumber(ARGV[12]), ARGV[13], ARGV[14], ARGV[15], ARGV[16]
local found = redis.call('HMGET', STATE, 'stamp', 'recent')
local recent = found[2] or ''
-- A write whose answer was lost is sent again.
if string.find(recent, stamp, 1, true) then return reply(1) end
if named(found[1]) ~= before then return reply(0) end
tick()
redis.call('HSET', STATE, 'stamp', stamp, 'line', line, 'revision', revision, 'document', document)
redis.call('HSET', STATE, 'recent', string.sub(recent .. ' ' .. stamp, -1024))
for _, id in ipairs(redis.call('ZRANGE', HOLDS, 0, -1)) do
  if not string.find(kept, ',' .. id .. ',', 1, true) then redis.call('ZREM', HOLDS, id) end
end
for id in string.gmatch(taken, '[^,]+') do redis.call('ZADD', HOLDS, number(now + lease), id) end
redis.call('PUBLISH', channel, news)
return reply(1)
"""

_VOUCH = """
local hold, lease, forget, scan, settled = ARGV[7], tonumber(ARGV[8]), tonumber(ARGV[9]), ARGV[10], tonumber(ARGV[11])
tick()
local score = redis.call('ZSCORE', HOLDS, hold)
if not score or tonumber(score) <= now then return {0, 0, 0, {}, '', 0} end
redis.call('ZADD', HOLDS, number(now + lease), hold)
if scan == '0' then return {1, 0, 0, {}, '', 0} end
settle()
local gone = redis.call('ZRANGEBYSCORE', WORKERS, '-inf', number(now - forget), 'LIMIT', 0, 100)
for _, id in ipairs(gone) do
  redis.call('ZREM', WORKERS, id)
  for _, key in ipairs({ACKS, RECORDS}) do redis.call('HDEL', key, id) end
end
local born = redis.call('HGET', STATE, 'born') or number(now)
local young = now - tonumber(born) < settled
local sound, lasting, silent, open = lease, 1, {}, 0
local workers = redis.call('ZRANGEBYSCORE', WORKERS, '(' .. number(now - forget), '+inf', 'WITHSCORES')
for i = 1, #workers, 2 do
  local ack = redis.call('HGET', ACKS, workers[i])
  local till, idle, holds
  if ack then till, idle, holds = string.match(ack, '^(%S+) (%d) (.*)$') end
  local left = till and (till == '-' and lease or till - now) or 0
  if left > 0 and idle == '1' and string.find(',' .. holds .. ',', ',' .. hold .. ',', 1, true) then
    if left < sound then sound = left end
    if till ~= '-' then lasting = 0 end
  else
    open = open + 1
    if tonumber(workers[i + 1]) <= now then silent[#silent + 1] = workers[i] end
  end
end
return {1, open == 0 and math.floor(sound) or -1, young and 1 or 0, silent, born, lasting}
"""

_CENSUS = """
local forget, found = tonumber(ARGV[7]), {}
local workers = redis.call('ZRANGEBYSCORE', WORKERS, '(' .. number(now - forget), '+inf', 'WITHSCORES')
for i = 1, #workers, 2 do
  found[#found + 1] = workers[i]
  found[#found + 1] = number(workers[i + 1] - now)
  found[#found + 1] = redis.call('HGET', RECORDS, workers[i]) or ''
  found[#found + 1] = redis.call('HGET', ACKS, workers[i]) or ''
end
return found
"""


@dataclass(frozen=True)
class Script:
    """A script and the name under which Redis knows it once it has run."""

    source: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha", hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest())


LOOK = Script(_CLOCK + _LOOK)
"""Give the state. A first look (no `LEAP`) changes nothing, those after it keep the clock going."""

CALL = Script(_CLOCK + _CALL)
"""Tell those who may know more than an empty store; changes nothing."""

BEAT = Script(_CLOCK + _BEAT)
"""Register a worker or renew it, take its promise, and give the state."""

GOODBYE = Script(_CLOCK + _GOODBYE)
"""Strike a worker off."""

CHANGE = Script(_CLOCK + _CHANGE)
"""Replace the document that was read, begin the leases of holds, end those of the others, and tell everybody."""

VOUCH = Script(_CLOCK + _VOUCH)
"""Renew a hold, and tell for how long all workers have promised to refuse because of it."""

CENSUS = Script(_CLOCK + _CENSUS)
"""List the workers; changes nothing."""
