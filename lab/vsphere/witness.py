#!/usr/bin/env python3
"""VMware's own client library looks at the lab: witness.py HOST PORT USER PASSWORD MACHINE FILE.

It shares nothing with Sendense, so what both read the same way is what the simulator says. Makes two snapshots with a write
to FILE (the machine's first disk) between them, asks for the areas that changed, and prints them.
"""
import ssl
import sys
import time

from pyVim.connect import Disconnect, SmartConnect
from pyVmomi import vim, vmodl

host, port, user, password, name, path = sys.argv[1:]
context = ssl.create_default_context()
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
service = SmartConnect(host=host, port=int(port), user=user, pwd=password, sslContext=context)
content = service.RetrieveContent()
view = content.viewManager.CreateContainerView(content.rootFolder, [vim.VirtualMachine], True)
machine = next(found for found in view.view if found.name == name)


def done(task):
    """Waits; asks for what is needed only, for the simulator's whole TaskInfo is not what VMware's types allow."""
    wanted = vmodl.query.PropertyCollector.FilterSpec(
        propSet=[vmodl.query.PropertyCollector.PropertySpec(
            type=vim.Task, pathSet=["info.state", "info.result", "info.error"])],
        objectSet=[vmodl.query.PropertyCollector.ObjectSpec(obj=task)])
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = content.propertyCollector.RetrieveContents([wanted])[0].propSet
        info = {one.name: one.val for one in found}
        if info["info.state"] == "success":
            return info.get("info.result")
        if info["info.state"] == "error":
            sys.exit(f"task: {info['info.error']}")
        time.sleep(0.02)
    sys.exit("a task does not end")


def disk(snapshot):
    return next(d for d in snapshot.config.hardware.device if isinstance(d, vim.vm.device.VirtualDisk))


done(machine.ReconfigVM_Task(vim.vm.ConfigSpec(changeTrackingEnabled=True)))
first = done(machine.CreateSnapshot_Task("first", "", False, False))
since = disk(first).backing.changeId
with open(path, "r+b") as file:
    file.seek(3 << 16)
    file.write(b"witness")
second = done(machine.CreateSnapshot_Task("second", "", False, False))
found = machine.QueryChangedDiskAreas(second, disk(second).key, 0, since)
print(disk(second).key, disk(second).deviceInfo.label, disk(second).capacityInBytes, found.startOffset, found.length)
for area in found.changedArea:
    print(area.start, area.length)
done(first.RemoveSnapshot_Task(False, True))
done(second.RemoveSnapshot_Task(False, True))
done(machine.ConsolidateVMDisks_Task())
Disconnect(service)
