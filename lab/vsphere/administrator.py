#!/usr/bin/env python3
"""An administrator at work, with VMware's own client library: what happens to machines between backups.

administrator.py HOST PORT USER PASSWORD MACHINE add UNIT BYTES [MODE | physical] | grow KEY BYTES | remove KEY | template | machine
"""
import ssl
import sys

from pyVim.connect import Disconnect, SmartConnect
from pyVmomi import vim, vmodl

host, port, user, password, name, verb, *arguments = sys.argv[1:]
mode = arguments.pop() if verb == "add" and len(arguments) == 3 else "persistent"
arguments = [int(argument) for argument in arguments]
context = ssl.create_default_context()
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
service = SmartConnect(host=host, port=int(port), user=user, pwd=password, sslContext=context)
content = service.RetrieveContent()
view = content.viewManager.CreateContainerView(content.rootFolder, [vim.VirtualMachine], True)
machine = next(found for found in view.view if found.name == name)
if verb in ("template", "machine"):
    if verb == "template":
        machine.MarkAsTemplate()
    else:
        machine.MarkAsVirtualMachine(pool=machine.runtime.host.parent.resourcePool)
    Disconnect(service)
    sys.exit(0)
change = vim.vm.device.VirtualDeviceSpec()
if verb == "add":
    unit, size = arguments
    controller = next(d for d in machine.config.hardware.device if isinstance(d, vim.vm.device.VirtualSCSIController))
    change.operation, change.fileOperation = "add", "create"
    disk = vim.vm.device.VirtualDisk
    if mode == "physical":
        backing = disk.RawDiskMappingVer1BackingInfo(
            fileName="[LocalDS_0]", deviceName="vml.0200", compatibilityMode="physicalMode", diskMode="independent_persistent")
    else:
        backing = disk.FlatVer2BackingInfo(fileName="[LocalDS_0]", diskMode=mode)
    change.device = disk(
        key=-1, controllerKey=controller.key, unitNumber=unit, capacityInKB=size // 1024, capacityInBytes=size,
        backing=backing)
else:
    change.device = next(d for d in machine.config.hardware.device if d.key == arguments[0])
    if verb == "grow":
        change.operation = "edit"
        change.device.capacityInBytes, change.device.capacityInKB = arguments[1], arguments[1] // 1024
    else:
        change.operation, change.fileOperation = "remove", "destroy"
task = machine.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[change]))
wanted = vmodl.query.PropertyCollector.FilterSpec(
    propSet=[vmodl.query.PropertyCollector.PropertySpec(type=vim.Task, pathSet=["info.state", "info.error"])],
    objectSet=[vmodl.query.PropertyCollector.ObjectSpec(obj=task)])
# The simulator's tasks have ended when their call returns.
found = {one.name: one.val for one in content.propertyCollector.RetrieveContents([wanted])[0].propSet}
Disconnect(service)
sys.exit(0 if found["info.state"] == "success" else f"{verb}: {found}")
