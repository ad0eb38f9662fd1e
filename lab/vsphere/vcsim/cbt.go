package simulator

// What govmomi's simulator lacks for a backup, added to its own package by `go build -overlay`: disks as sparse files,
// changeIds, QueryChangedDiskAreas page by page, ConsolidateVMDisks_Task.
//
// Below the root: `<datastore>/<path>.vmdk` is what the guest sees now, raw; `.snap/<snapshot>/<datastore>/<path>.vmdk` what it
// saw when the snapshot was made (it leads to `.cbt/<uuid>/<epoch>-<n>`, which stays: changes are found by comparing two
// of these); `control/` holds what a test wants to go wrong (`idle`: that no guest
// writes, so that a snapshot takes no time here either). This is our reading of VMware's contract: it proves plumbing
// and arithmetic, not what ESXi does.

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

const granularity = 64 << 10

// What is tracked of one disk, by its backing's uuid.
type tracked struct {
	epoch string
	count int
	file  string
}

type tracker struct {
	sync.Mutex
	root  string
	disks map[string]*tracked
}

var cbt *tracker

// TrackChanges makes disks files below root from now on.
func TrackChanges(root string) {
	for _, folder := range []string{"control", ".snap", ".cbt"} {
		if err := os.MkdirAll(filepath.Join(root, folder), 0o755); err != nil {
			panic(err)
		}
	}
	cbt = &tracker{root: root, disks: map[string]*tracked{}}
	Map.AddHandler(cbt)
}

func (t *tracker) Reference() types.ManagedObjectReference {
	return types.ManagedObjectReference{Type: "ChangeTracker", Value: "tracker"}
}

func (t *tracker) UpdateObject(item mo.Reference, changes []types.PropertyChange) {
	vm, ok := Map.Get(item.Reference()).(*VirtualMachine)
	if !ok {
		return
	}
	for _, change := range changes {
		if change.Name == "config.hardware.device" {
			t.settle(vm)
		}
	}
	if vm.Guest != nil && t.told("tools") {
		vm.Guest.ToolsRunningStatus = string(types.VirtualMachineToolsRunningStatusGuestToolsRunning)
	}
}

func (t *tracker) PutObject(item mo.Reference) {
	if snapshot, ok := item.(*VirtualMachineSnapshot); ok {
		t.freeze(snapshot)
	}
}

func (t *tracker) RemoveObject(item types.ManagedObjectReference) {
	if item.Type != "VirtualMachineSnapshot" {
		return
	}
	if snapshot, ok := Map.Get(item).(*VirtualMachineSnapshot); ok && t.told("leave-deltas") {
		vm := Map.Get(snapshot.Vm).(*VirtualMachine)
		vm.Runtime.ConsolidationNeeded = types.NewBool(true)
	}
	_ = os.RemoveAll(filepath.Join(t.root, ".snap", item.Value))
}

// told says whether a test has left a file in `control/`.
func (t *tracker) told(name string) bool {
	_, err := os.Stat(filepath.Join(t.root, "control", name))
	return err == nil
}

// number reads a control file that holds a number; 0 when there is none.
func (t *tracker) number(name string) int {
	text, _ := os.ReadFile(filepath.Join(t.root, "control", name))
	number, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return number
}

// took counts a control file down and says whether there was something left of it.
func (t *tracker) took(name string) bool {
	left := t.number(name)
	if left > 0 {
		_ = os.WriteFile(filepath.Join(t.root, "control", name), []byte(strconv.Itoa(left-1)), 0o644)
	}
	return left > 0
}

func freshUUID() string {
	var raw [16]byte
	_, _ = rand.Read(raw[:])
	return fmt.Sprintf("%x-%x-%x-%x-%x", raw[:4], raw[4:6], raw[6:8], raw[8:10], raw[10:])
}

// place turns `[datastore] dir/x.vmdk` into a path below the root.
func (t *tracker) place(below, name string) string {
	name = strings.TrimPrefix(name, "[")
	store, file, _ := strings.Cut(name, "] ")
	return filepath.Join(t.root, below, store, filepath.Clean("/"+file))
}

// settle gives disks what real ones have: a key from 2000 on, a label, a size in bytes, a uuid, a file.
func (t *tracker) settle(vm *VirtualMachine) {
	vm.Capability.ChangeTrackingSupported = types.NewBool(true)
	used := map[int32]bool{}
	for _, device := range vm.Config.Hardware.Device {
		used[device.GetVirtualDevice().Key] = true
	}
	for _, device := range vm.Config.Hardware.Device {
		disk, ok := device.(*types.VirtualDisk)
		if !ok {
			continue
		}
		if disk.Key < 2000 || disk.Key >= 3000 {
			key := int32(2000)
			for used[key] {
				key++
			}
			used[key] = true
			disk.Key = key
			disk.DeviceInfo = &types.Description{Label: fmt.Sprintf("Hard disk %d", key-1999), Summary: "a disk"}
		}
		if kilobytes := disk.CapacityInKB * 1024; disk.CapacityInBytes < kilobytes {
			disk.CapacityInBytes = kilobytes
		}
		if raw, ok := disk.Backing.(*types.VirtualDiskRawDiskMappingVer1BackingInfo); ok && raw.Uuid == "" {
			// Its bytes are on a device of the host's.
			raw.Uuid = freshUUID()
		}
		backing, ok := disk.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
		if !ok {
			continue
		}
		path := t.place("", backing.FileName)
		if backing.Uuid == "" {
			backing.Uuid = freshUUID()
			// A file of that name belonged to a disk that was taken away.
			_ = os.Remove(path)
		}
		_ = os.MkdirAll(filepath.Dir(path), 0o755)
		if file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644); err == nil {
			if info, err := file.Stat(); err == nil && info.Size() < disk.CapacityInBytes {
				_ = file.Truncate(disk.CapacityInBytes)
			}
			_ = file.Close()
		}
	}
}

// freeze copies the disks of a machine for its new snapshot, and stamps the snapshot's devices with changeIds.
func (t *tracker) freeze(snapshot *VirtualMachineSnapshot) {
	t.Lock()
	defer t.Unlock()
	tracking := snapshot.Config.ChangeTrackingEnabled != nil && *snapshot.Config.ChangeTrackingEnabled
	var devices []types.BaseVirtualDevice
	for _, device := range snapshot.Config.Hardware.Device {
		disk, ok := device.(*types.VirtualDisk)
		if ok {
			// Of an independent disk, and of a raw device in physical mode, a snapshot holds nothing.
			backing, ok := disk.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
			if ok && !strings.HasPrefix(backing.DiskMode, "independent") {
				copied, inside := *disk, *backing
				copied.Backing = &inside
				t.freezeDisk(snapshot.Self.Value, &inside, tracking)
				device = &copied
			}
		}
		devices = append(devices, device)
	}
	snapshot.Config.Hardware.Device = devices
}

func (t *tracker) freezeDisk(snapshot string, backing *types.VirtualDiskFlatVer2BackingInfo, tracking bool) {
	state := t.disks[backing.Uuid]
	if state == nil || t.told("reset") || (tracking && state.epoch == "") {
		state = &tracked{}
		t.disks[backing.Uuid] = state
		if tracking {
			state.epoch = strings.ReplaceAll(freshUUID(), "-", " ")
		}
	}
	if !tracking {
		state.epoch = ""
	}
	state.count++
	former := state.file
	folder := filepath.Join(t.root, ".cbt", backing.Uuid)
	_ = os.MkdirAll(folder, 0o755)
	state.file = filepath.Join(folder, fmt.Sprintf("%s-%d", strings.ReplaceAll(state.epoch, " ", ""), state.count))
	live := t.place("", backing.FileName)
	if former != "" && t.told("idle") {
		// No guest writes: what it sees is what it saw, and nothing is copied.
		if err := os.Link(former, state.file); err != nil {
			panic(err)
		}
	} else if out, err := exec.Command("cp", "--sparse=always", "--reflink=auto", live, state.file).CombinedOutput(); err != nil {
		panic(fmt.Sprintf("copy %s: %s", live, out))
	}
	seen := t.place(filepath.Join(".snap", snapshot), backing.FileName)
	_ = os.MkdirAll(filepath.Dir(seen), 0o755)
	if err := os.Symlink(state.file, seen); err != nil {
		panic(err)
	}
	backing.ChangeId = ""
	if tracking {
		backing.ChangeId = fmt.Sprintf("%s/%d", state.epoch, state.count)
	}
}

// QueryChangedDiskAreas compares two frozen states of a disk, some areas at a time.
func (vm *VirtualMachine) QueryChangedDiskAreas(_ *Context, req *types.QueryChangedDiskAreas) soap.HasFault {
	body := new(methods.QueryChangedDiskAreasBody)
	info, fault := cbt.changed(vm, req)
	if fault != nil {
		body.Fault_ = Fault("", fault)
	} else {
		body.Res = &types.QueryChangedDiskAreasResponse{Returnval: *info}
	}
	return body
}

func (t *tracker) changed(vm *VirtualMachine, req *types.QueryChangedDiskAreas) (*types.DiskChangeInfo, types.BaseMethodFault) {
	t.Lock()
	defer t.Unlock()
	if req.Snapshot == nil {
		return nil, &types.InvalidArgument{InvalidProperty: "snapshot"}
	}
	snapshot, ok := Map.Get(*req.Snapshot).(*VirtualMachineSnapshot)
	if !ok || snapshot.Vm != vm.Self {
		return nil, &types.ManagedObjectNotFound{Obj: *req.Snapshot}
	}
	var disk *types.VirtualDisk
	for _, device := range snapshot.Config.Hardware.Device {
		if found, ok := device.(*types.VirtualDisk); ok && found.Key == req.DeviceKey {
			disk = found
		}
	}
	if disk == nil {
		return nil, &types.InvalidArgument{InvalidProperty: "deviceKey"}
	}
	backing := disk.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
	if req.StartOffset < 0 || req.StartOffset >= disk.CapacityInBytes {
		return nil, &types.InvalidArgument{InvalidProperty: "startOffset"}
	}
	stale := &types.FileFault{File: backing.FileName}
	if backing.ChangeId == "" {
		return nil, stale
	}
	now := t.place(filepath.Join(".snap", req.Snapshot.Value), backing.FileName)
	then := ""
	if req.ChangeId != "*" {
		epoch, number, _ := strings.Cut(req.ChangeId, "/")
		current, _, _ := strings.Cut(backing.ChangeId, "/")
		if epoch != current {
			return nil, stale
		}
		then = filepath.Join(t.root, ".cbt", backing.Uuid, strings.ReplaceAll(epoch, " ", "")+"-"+number)
	}
	areas, end, err := t.compare(then, now, req.StartOffset, disk.CapacityInBytes)
	if err != nil {
		return nil, stale
	}
	if t.told("lie") {
		areas = nil
	}
	return &types.DiskChangeInfo{StartOffset: req.StartOffset, Length: end - req.StartOffset, ChangedArea: areas}, nil
}

// compare finds the areas that differ; where there is nothing to compare with, those that are not zero.
func (t *tracker) compare(then, now string, offset, capacity int64) ([]types.DiskChangeExtent, int64, error) {
	most := t.number("areas-max")
	if most == 0 {
		most = 2000
	}
	newer, err := os.Open(now)
	if err != nil {
		return nil, 0, err
	}
	defer newer.Close()
	var older io.ReaderAt = zeros{}
	if then != "" {
		file, err := os.Open(then)
		if err != nil {
			return nil, 0, err
		}
		defer file.Close()
		older = file
	}
	var areas []types.DiskChangeExtent
	one, two := make([]byte, granularity), make([]byte, granularity)
	at := offset / granularity * granularity
	for ; at < capacity; at += granularity {
		clear := func(buffer []byte, read int) []byte {
			for i := read; i < len(buffer); i++ {
				buffer[i] = 0
			}
			return buffer
		}
		n, _ := older.ReadAt(one, at)
		m, _ := newer.ReadAt(two, at)
		if bytes.Equal(clear(one, n), clear(two, m)) {
			continue
		}
		begin := at
		if begin < offset {
			begin = offset
		}
		last := len(areas) - 1
		if last >= 0 && areas[last].Start+areas[last].Length == begin {
			areas[last].Length += at + granularity - begin
			continue
		}
		if len(areas) == most {
			return areas, at, nil
		}
		areas = append(areas, types.DiskChangeExtent{Start: begin, Length: at + granularity - begin})
	}
	return areas, at, nil
}

type zeros struct{}

func (zeros) ReadAt(buffer []byte, _ int64) (int, error) { return 0, io.EOF }

// ConsolidateVMDisksTask brings together what a snapshot's removal has left; it may find files locked.
func (vm *VirtualMachine) ConsolidateVMDisksTask(_ *Context, _ *types.ConsolidateVMDisks_Task) soap.HasFault {
	task := CreateTask(vm, "consolidateVMDisks", func(*Task) (types.AnyType, types.BaseMethodFault) {
		if cbt.took("locked") {
			return nil, &types.FileLocked{FileFault: types.FileFault{File: vm.Config.Files.VmPathName}}
		}
		vm.Runtime.ConsolidationNeeded = types.NewBool(false)
		return nil, nil
	})
	return &methods.ConsolidateVMDisks_TaskBody{
		Res: &types.ConsolidateVMDisks_TaskResponse{Returnval: task.Run()},
	}
}
