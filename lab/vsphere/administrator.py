#!/usr/bin/env python3
"""An administrator at work, with VMware's own client library: what happens to machines between backups.

administrator.py HOST PORT USER PASSWORD MACHINE add UNIT BYTES | grow KEY BYTES | remove KEY
"""
import ssl
import sys

from pyVim.connect import Disconnect, SmartConnect
from pyVmomi import vim, vmodl

host, port, user, password, name, verb, *arguments = sys.argv[1:]
arguments = [int(argument) for argument in arguments]
context = ssl.create_default_context()
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
service = SmartConnect(host=host, port=int(port), user=user, pwd=password, sslContext=context)
content = service.RetrieveContent()
view = content.viewManager.CreateContainerView(content.rootFolder, [vim.VirtualMachine], True)
machine = next(found for found in view.view if found.name == name)
change = vim.vm.device.VirtualDeviceSpec()
if verb == "add":
    unit, size = arguments
    controller = next(d for d in machine.config.hardware.device if isinstance(d, vim.vm.device.VirtualSCSIController))
    change.operation, change.fileOperation = "add", "create"
    change.device = vim.vm.device.VirtualDisk(
        key=-1, controllerKey=controller.key, unitNumber=unit, capacityInKB=size // 1024, capacityInBytes=size,
        backing=vim.vm.device.VirtualDisk.FlatVer2BackingInfo(fileName="[LocalDS_0]", diskMode="persistent"))
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
