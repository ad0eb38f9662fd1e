#!/usr/bin/env python3
"""catalog.py URL TOKEN_FILE VMS: how long lists take while the schedule is carried out; prints rows for run.sh's table."""
import http.client
import json
import re
import sys
import time
import urllib.parse

ROUNDS = 1000
# Backups that must run at every moment, and how long the schedule may take until they do: it is due after a minute.
RUNNING = 8
BEGIN_SECONDS = 180

address, token_file, vms = urllib.parse.urlsplit(sys.argv[1]), sys.argv[2], int(sys.argv[3])
with open(token_file) as file:
    headers = {"Authorization": "Bearer " + file.read().strip()}
connection = http.client.HTTPConnection(address.hostname, address.port)


def get(path):
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        sys.exit(f"{path}: {answer.status} {body[:500]!r}")
    return body


def listed(**query):
    return "/api/v1/backups?" + urllib.parse.urlencode(query)


def running():
    """Backups that run now."""
    return json.loads(get(listed(status="running", limit=1)))["total"]


def looks(name):
    """How many looks at the schedules there were, below which time 99 of 100 of them were, and below which all, in ms."""
    text = get("/api/v1/metrics").decode()
    found = re.finditer(rf'^{name}_bucket\{{le="([^"]+)"\}} (\S+)', text, re.M)
    buckets = [(1000 * float(one.group(1)), float(one.group(2))) for one in found]
    count = buckets[-1][1]
    below = lambda share: next(end for end, counted in buckets if counted >= share * count)
    return count, below(0.99), below(1)


def row(what, value, unit, limit, note, holds=True):
    met = "met" if value <= limit and holds else "**not met**"
    print(f"| {what} | {value:.1f} {unit} ({note}) | | | at most {limit} {unit} | {met} |")


repository = json.loads(get("/api/v1/repositories"))["repositories"]
repository = next(one["repository_id"] for one in repository if one["name"] == "repo1")
vm = json.loads(get(listed(vm_name="vm17", limit=1)))["backups"][0]["vm_context_id"]
pages = [
    listed(limit=100),
    listed(limit=100, offset=90_000),
    listed(limit=100, vm_name="vm17"),
    listed(limit=100, vm_context_id=vm, status="completed", backup_type="full"),
    listed(limit=100, repository_id=repository, offset=20_000),
    listed(limit=100, status="completed", offset=50_000),
    listed(limit=100, status="cancelled"),
    listed(limit=100, repository_id=repository, status="failed", backup_type="full"),
]
begun = time.monotonic()
while running() < RUNNING:
    if time.monotonic() - begun > BEGIN_SECONDS:
        sys.exit(f"{running()} backups run, not {RUNNING}")
    time.sleep(1)
total = json.loads(get(pages[0]))["total"]
times, ran = {page: [] for page in pages}, []
for turn in range(ROUNDS):
    for page in pages:
        begun = time.monotonic()
        get(page)
        times[page].append(1000 * (time.monotonic() - begun))
    if turn % 5 == 0:
        ran.append(running())

p99 = lambda values: sorted(values)[int(0.99 * (len(values) - 1))]
median = lambda values: sorted(values)[len(values) // 2]
for page in pages:
    print(f"{p99(times[page]):8.1f} ms p99 {median(times[page]):8.1f} ms median  {page}", file=sys.stderr)
print(f"running: {min(ran)} to {max(ran)}, median {median(ran)}, of {len(ran)} samples; {total:,} backups", file=sys.stderr)
every = [value for page in pages for value in times[page]]
note = (f"median {median(every):.1f} ms; the slowest of {len(pages)} lists {max(p99(times[page]) for page in pages):.1f} ms; "
        f"{min(ran)} backups ran at the least, {median(ran)} in the median")
row(f"list 100,000 backups by filters, p99, while at least {RUNNING} backups run", p99(every), "ms", 50, note, min(ran) >= RUNNING)

count, most, slowest = looks("sendense_schedule_decide_seconds")
row(f"the scheduler decides, {vms:,} machines in one schedule: every look below", slowest, "ms", 100,
    f"{count:.0f} looks, the one that begins it among them; 99 of 100 below {most:.0f} ms")
count, most, slowest = looks("sendense_schedule_pass_seconds")
row(f"a look at all schedules, {vms:,} machines in one, with what it begins: 99 of 100 below", most, "ms", 100,
    f"{count:.0f} looks; every one below {slowest:.0f} ms")
