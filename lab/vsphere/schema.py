#!/usr/bin/env python3
"""Writes the order of elements that vSphere's schema wants of our requests, as pyvmomi's types know it.

    python3 -m venv V && V/bin/pip install pyvmomi && V/bin/python lab/vsphere/schema.py \
        > crates/sendense-vsphere/tests/data/schema.txt

A line is a method with its parameters or a type with what it extends and its fields, each field with its type; a field that
may stand several times ends in `[]`, one that must be there in `!`. Fields younger than vSphere 6.5, whose schema we
speak, are left out.
"""
import re

from pyVmomi import VmomiSupport, vim, vmodl

MAY_BE = "6.5"
METHODS = {
    vim.ServiceInstance: ["RetrieveServiceContent", "CurrentTime"],
    vim.SessionManager: ["Login", "Logout"],
    vim.view.ViewManager: ["CreateContainerView"],
    vim.view.View: ["DestroyView"],
    vmodl.query.PropertyCollector: ["RetrievePropertiesEx", "ContinueRetrievePropertiesEx"],
    vim.SearchIndex: ["FindByUuid"],
    vim.AuthorizationManager: ["HasPrivilegeOnEntities"],
    vim.Task: ["CancelTask"],
    vim.VirtualMachine: [
        "CreateSnapshot_Task", "ConsolidateVMDisks_Task", "QueryChangedDiskAreas", "ReconfigVM_Task",
        "PowerOnVM_Task", "PowerOffVM_Task", "UnregisterVM",
    ],
    vim.ManagedEntity: ["Destroy_Task"],
    vim.vm.Snapshot: ["RemoveSnapshot_Task"],
    vim.Folder: ["CreateVM_Task"],
}
TYPES = [
    "PropertyFilterSpec", "PropertySpec", "ObjectSpec", "SelectionSpec", "TraversalSpec", "RetrieveOptions",
    "VirtualMachineConfigSpec", "VirtualMachineFileInfo", "VirtualDeviceConfigSpec",
    "VirtualDevice", "VirtualDisk", "VirtualController", "VirtualSCSIController", "ParaVirtualSCSIController",
    "VirtualLsiLogicController", "VirtualLsiLogicSASController", "VirtualBusLogicController", "VirtualSATAController",
    "VirtualAHCIController", "VirtualNVMEController", "VirtualIDEController",
    "VirtualEthernetCard", "VirtualVmxnet", "VirtualVmxnet3", "VirtualE1000", "VirtualE1000e",
    "VirtualDeviceBackingInfo", "VirtualDeviceFileBackingInfo", "VirtualDiskFlatVer2BackingInfo",
    "VirtualDeviceDeviceBackingInfo", "VirtualEthernetCardNetworkBackingInfo",
    "VirtualEthernetCardDistributedVirtualPortBackingInfo", "DistributedVirtualSwitchPortConnection",
    "VirtualDeviceConnectInfo",
]


def number(version_id):
    """A version as numbers: 2.5u2server is 2.5; what has no number is the newest there is."""
    digits = re.match(r"[0-9.]+", version_id)
    return tuple(int(part) for part in digits.group().split(".") if part) if digits else (99,)


def known(version):
    """Whether something of that version is in the schema that we speak."""
    held = VmomiSupport.versionIdMap.get(version)
    # Versions of the query service itself are not among vSphere's; it has not changed since.
    return held is None or not version.startswith("vim.") or number(held) <= number(MAY_BE)


def type_name(kind):
    many = ""
    if issubclass(kind, VmomiSupport.Array):
        kind, many = kind.Item, "[]"
    if issubclass(kind, VmomiSupport.ManagedObject):
        return "ManagedObjectReference" + many
    return VmomiSupport.GetWsdlName(kind) + many


def fields(infos):
    return " ".join(
        f"{info.name}:{type_name(info.type)}{'' if info.flags & VmomiSupport.F_OPTIONAL else '!'}"
        for info in infos
        if known(info.version) and info.name not in ("dynamicType", "dynamicProperty")
    )


print("# From pyvmomi's types by lab/vsphere/schema.py.")
for holder, names in METHODS.items():
    for name in names:
        method = next(found for base in holder.__mro__ if hasattr(base, "_methodInfo")
                      for found in base._methodInfo.values() if found.wsdlName == name)
        print(f"method {name} {fields(method.params)}".rstrip())
for name in TYPES:
    kind = VmomiSupport.GetWsdlType("urn:vim25", name)
    base = kind.__bases__[0]
    extends = VmomiSupport.GetWsdlName(base) if base is not VmomiSupport.DataObject else "-"
    print(f"type {name} {extends} {fields(kind._GetPropertyList())}".rstrip())
