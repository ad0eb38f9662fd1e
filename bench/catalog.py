#!/usr/bin/env python3
"""catalog.py URL TOKEN_FILE VMS: how long lists take while the schedule is carried out; prints rows for run.sh's table."""
import http.client
import json
import re
import sys
import time
import urllib.parse

ROUNDS = 1000

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


def metric(text, pattern):
    return [(found.group(1), float(found.group(2))) for found in re.finditer(pattern, text, re.M)]


def row(what, value, unit, limit, note):
    print(f"| {what} | {value:.1f} {unit} ({note}) | | | at most {limit} {unit} | {'met' if value <= limit else '**not met**'} |")


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
total = json.loads(get(pages[0]))["total"]
times, running = {page: [] for page in pages}, []
for turn in range(ROUNDS):
    for page in pages:
        begun = time.monotonic()
        get(page)
        times[page].append(1000 * (time.monotonic() - begun))
    if turn % 20 == 0:
        text = get("/api/v1/metrics").decode()
        running += [value for _, value in metric(text, r'^sendense_tasks\{state="(running)"\} (\S+)')]

p99 = lambda values: sorted(values)[int(0.99 * (len(values) - 1))]
median = lambda values: sorted(values)[len(values) // 2]
for page in pages:
    print(f"{p99(times[page]):8.1f} ms p99 {median(times[page]):8.1f} ms median  {page}", file=sys.stderr)
print(f"running: {min(running):.0f} to {max(running):.0f}, median {median(running):.0f}", file=sys.stderr)
every = [value for page in pages for value in times[page]]
note = f"median {median(every):.1f} ms; the slowest of {len(pages)} lists {max(p99(times[page]) for page in pages):.1f} ms"
row(f"list {total:,} backups by filters, p99, while {median(running):.0f} backups run", p99(every), "ms", 50, note)

buckets = metric(get("/api/v1/metrics").decode(), r'^sendense_schedule_pass_seconds_bucket\{le="([^"]+)"\} (\S+)')
passes = buckets[-1][1]
below = next(float(end) for end, count in buckets if count >= 0.99 * passes)
row(f"a look at all schedules, {vms:,} machines in one, with what it begins: 99 of 100 below", 1000 * below, "ms", 100,
    f"{passes:.0f} looks")
