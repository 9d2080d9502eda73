-- Sends the requests of a file in turn, and counts the responses that are right.
-- Arguments: the file, "once" or "again", the expected status, and a text that the body contains.
-- A request in the file is a line with its length in bytes, then the request.
local threads = {}

function setup(thread)
  table.insert(threads, thread)
end

local function read()
  local length = file:read("*l")
  if length then return file:read(tonumber(length)) end
end

function init(args)
  file = assert(io.open(args[1], "rb"))
  once = args[2] == "once"
  expected, contained = tonumber(args[3]), args[4]
  right, wrong, exhausted, first_wrong = 0, 0, 0, ""
  current = read()
  single = not once and not read()
  file:seek("set")
end

function request()
  if single then return current end
  local following = read()
  if not following then
    if once then
      exhausted = exhausted + 1
      return current
    end
    file:seek("set")
    following = read()
  end
  current = following
  return current
end

function response(status, headers, body)
  if status == expected and string.find(body, contained, 1, true) then
    right = right + 1
  else
    wrong = wrong + 1
    if wrong == 1 then first_wrong = status .. " " .. string.sub(body, 1, 300) end
  end
end

function done(summary, latency, requests)
  local thread, errors = threads[1], summary.errors
  io.write(string.format(
    "\nBENCH %d %d %d %d %d %d %d %s\n",
    thread:get("right"), thread:get("wrong"), thread:get("exhausted"),
    errors.connect + errors.read + errors.write + errors.timeout, summary.duration,
    latency:percentile(50), latency:percentile(99), string.gsub(thread:get("first_wrong"), "%s+", " ")
  ))
end
