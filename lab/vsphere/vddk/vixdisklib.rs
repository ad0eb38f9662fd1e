//! A VDDK of our own making, for tests only: what nbdkit's vddk plugin calls, over files of the simulator.
//!
//! It is never shipped and shares nothing with VMware's library but the names and shapes that nbdkit's plugin uses. It reads
//! `lab.conf` in its folder (`root`, `user`, `password`, `thumbprint`, `handles`) and, at each open and read, the folder
//! `control` of the root: `bad-offset` (a byte that cannot be read), `full-from` (where a datastore's room ends, in each
//! disk), `read-delay-ms`, `write-delay-ms`, `close-delay-ms`.
//! Compiled by `rustc` alone; the rest of the product has no unsafe code and this is not part of it.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{OnceLock, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

type VixError = u64;
const OK: VixError = 0;
const FAIL: VixError = 1;
const NOT_FOUND: VixError = 4;
const NOT_SUPPORTED: VixError = 6;
const DISK_FULL: VixError = 8;
const HOST_BUSY: VixError = 14010;
const CANNOT_CONNECT: VixError = 14009;
const ACCESS: VixError = 13;
const LOGIN: VixError = 3014;
const ASYNC: VixError = 25000;
const READ_ONLY: u32 = 4;
const SECTOR: u64 = 512;

#[repr(C)]
pub struct ConnectParams {
    vmx_spec: *const c_char,
    server: *const c_char,
    thumbprint: *const c_char,
    reserved: i64,
    cred_type: u32,
    user: *const c_char,
    password: *const c_char,
}

#[repr(C)]
pub struct Info {
    bios: [u32; 3],
    phys: [u32; 3],
    capacity: u64,
    adapter: u32,
    links: c_int,
    parent: *const c_char,
    uuid: *const c_char,
    logical_sector: u32,
    physical_sector: u32,
    reserved: [u64; 8],
}

#[repr(C)]
pub struct Block {
    offset: u64,
    length: u64,
}

type Callback = extern "C" fn(*mut c_void, VixError);

pub struct Connection {
    snapshot: Option<String>,
    read_only: bool,
}

pub struct Handle {
    file: File,
    mark: PathBuf,
    work: Option<mpsc::Sender<Work>>,
    worker: Option<JoinHandle<()>>,
}

struct Work {
    start: u64,
    sectors: u64,
    buffer: usize,
    write: bool,
    callback: Callback,
    data: usize,
}

static CONFIG: OnceLock<BTreeMap<String, String>> = OnceLock::new();
static NUMBER: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    fn lseek(fd: c_int, offset: i64, whence: c_int) -> i64;
}

fn config(name: &str) -> Option<&'static str> {
    CONFIG.get()?.get(name).map(String::as_str)
}

fn root() -> PathBuf {
    config("root").unwrap_or("/nonexistent").into()
}

fn control(name: &str) -> Option<u64> {
    fs::read_to_string(root().join("control").join(name)).ok()?.trim().parse().ok()
}

unsafe fn text(pointer: *const c_char) -> Option<String> {
    (!pointer.is_null()).then(|| unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned())
}

/// `[datastore] dir/x.vmdk` below the root, or below the snapshot.
fn place(snapshot: Option<&str>, name: &str) -> Option<PathBuf> {
    let (store, file) = name.strip_prefix('[')?.split_once("] ")?;
    let plain = |part: &str| Path::new(part).components().all(|part| matches!(part, Component::Normal(_)));
    if !plain(store) || !plain(file) {
        return None;
    }
    let base = snapshot.map_or_else(root, |snapshot| root().join(".snap").join(snapshot));
    Some(base.join(store).join(file))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn VixDiskLib_InitEx(
    _major: u32,
    _minor: u32,
    _log: *const c_void,
    _warn: *const c_void,
    _panic: *const c_void,
    lib_dir: *const c_char,
    _config: *const c_char,
) -> VixError {
    let Some(dir) = (unsafe { text(lib_dir) }) else { return FAIL };
    let Ok(lines) = fs::read_to_string(Path::new(&dir).join("lab.conf")) else { return FAIL };
    let pairs = lines.lines().filter_map(|line| line.split_once('='));
    let _ = CONFIG.set(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect());
    OK
}

#[unsafe(no_mangle)]
pub extern "C" fn VixDiskLib_Exit() {}

#[unsafe(no_mangle)]
pub extern "C" fn VixDiskLib_ListTransportModes() -> *const c_char {
    c"file:nbdssl:nbd".as_ptr()
}

#[unsafe(no_mangle)]
pub extern "C" fn VixDiskLib_GetErrorText(error: VixError, _unused: *const c_char) -> *mut c_char {
    let text = match error {
        OK => "The operation was successful",
        NOT_FOUND => "A file was not found",
        NOT_SUPPORTED => "The operation is not supported",
        DISK_FULL => {
            "An error occurred while writing a file. The disk is full. Data has not been saved. Free some disk space and try again"
        }
        ACCESS => "You do not have access rights to this file",
        LOGIN => "Insufficient permissions in the host operating system",
        CANNOT_CONNECT => "The server refused connection",
        HOST_BUSY => "NBD_ERR_INSUFFICIENT_RESOURCES",
        _ => "Unknown error",
    };
    CString::new(text).map_or(std::ptr::null_mut(), CString::into_raw)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn VixDiskLib_FreeErrorText(text: *mut c_char) {
    if !text.is_null() {
        drop(unsafe { CString::from_raw(text) });
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn VixDiskLib_FreeConnectParams(_params: *mut c_void) {}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn VixDiskLib_ConnectEx(
    params: *const ConnectParams,
    read_only: c_char,
    snapshot: *const c_char,
    _modes: *const c_char,
    out: *mut *mut Connection,
) -> VixError {
    let params = unsafe { &*params };
    let said = |pointer| unsafe { text(pointer) };
    if said(params.thumbprint).as_deref() != config("thumbprint") {
        return CANNOT_CONNECT;
    }
    if said(params.user).as_deref() != config("user") || said(params.password).as_deref() != config("password") {
        return LOGIN;
    }
    let connection = Connection { snapshot: said(snapshot), read_only: read_only != 0 };
    unsafe { *out = Box::into_raw(Box::new(connection)) };
    OK
}

/// Marks of open handles, one file each, named by the process: the limit holds over processes, as an ESXi host's does.
fn open_handles() -> usize {
    let marks = fs::read_dir(root().join(".handles")).into_iter().flatten().flatten();
    let alive = |name: &str| name.split_once('-').is_some_and(|(pid, _)| Path::new("/proc").join(pid).exists());
    marks.filter(|mark| alive(&mark.file_name().to_string_lossy())).count()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn VixDiskLib_Open(
    connection: *const Connection,
    path: *const c_char,
    flags: u32,
    out: *mut *mut Handle,
) -> VixError {
    let connection = unsafe { &*connection };
    let name = unsafe { text(path) }.unwrap_or_default();
    let Some(place) = place(connection.snapshot.as_deref(), &name) else { return NOT_FOUND };
    let limit = config("handles").and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX);
    if open_handles() >= limit {
        return HOST_BUSY;
    }
    let write = !connection.read_only && flags & READ_ONLY == 0;
    let file = match OpenOptions::new().read(true).write(write).open(&place) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return NOT_FOUND,
        Err(_) => return ACCESS,
    };
    let marks = root().join(".handles");
    let _ = fs::create_dir_all(&marks);
    let mark = marks.join(format!("{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed)));
    let _ = fs::write(&mark, name);
    let (work, todo) = mpsc::channel::<Work>();
    let Ok(copy) = file.try_clone() else { return FAIL };
    let worker = std::thread::spawn(move || {
        for one in todo {
            let result = perform(&copy, &one);
            (one.callback)(one.data as *mut c_void, result);
        }
    });
    let handle = Handle { file, mark, work: Some(work), worker: Some(worker) };
    unsafe { *out = Box::into_raw(Box::new(handle)) };
    OK
}

fn perform(file: &File, work: &Work) -> VixError {
    let (at, bytes) = (work.start * SECTOR, (work.sectors * SECTOR) as usize);
    if let Some(delay) = control(if work.write { "write-delay-ms" } else { "read-delay-ms" }) {
        std::thread::sleep(Duration::from_millis(delay));
    }
    if control("bad-offset").is_some_and(|bad| (at..at + bytes as u64).contains(&bad)) && !work.write {
        return FAIL;
    }
    if work.write && control("full-from").is_some_and(|end| at + bytes as u64 > end) {
        return DISK_FULL;
    }
    let done = if work.write {
        let buffer = unsafe { std::slice::from_raw_parts(work.buffer as *const u8, bytes) };
        file.write_all_at(buffer, at)
    } else {
        let buffer = unsafe { std::slice::from_raw_parts_mut(work.buffer as *mut u8, bytes) };
        file.read_exact_at(buffer, at)
    };
    if done.is_ok() { OK } else { FAIL }
}

#[unsafe(no_mangle)]
pub extern "C" fn VixDiskLib_GetTransportMode(_handle: *const Handle) -> *const c_char {
    c"nbdssl".as_ptr()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn VixDiskLib_Close(handle: *mut Handle) -> VixError {
    let mut handle = unsafe { Box::from_raw(handle) };
    if let Some(delay) = control("close-delay-ms") {
        std::thread::sleep(Duration::from_millis(delay));
    }
    handle.work = None;
    if let Some(worker) = handle.worker.take() {
        let _ = worker.join();
    }
    let _ = fs::remove_file(&handle.mark);
    OK
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn VixDiskLib_Disconnect(connection: *mut Connection) -> VixError {
    drop(unsafe { Box::from_raw(connection) });
    OK
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn VixDiskLib_GetInfo(handle: *const Handle, out: *mut *mut Info) -> VixError {
    let Ok(found) = (unsafe { &*handle }).file.metadata() else { return FAIL };
    let info = Info {
        bios: [0; 3],
        phys: [0; 3],
        capacity: found.len() / SECTOR,
        adapter: 3,
        links: 1,
        parent: std::ptr::null(),
        uuid: std::ptr::null(),
        logical_sector: 512,
        physical_sector: 512,
        reserved: [0; 8],
    };
    unsafe { *out = Box::into_raw(Box::new(info)) };
    OK
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn VixDiskLib_FreeInfo(info: *mut Info) {
    if !info.is_null() {
        drop(unsafe { Box::from_raw(info) });
    }
}

fn queue(handle: *const Handle, work: Work) -> VixError {
    let handle = unsafe { &*handle };
    match handle.work.as_ref().map(|queue| queue.send(work)) {
        Some(Ok(())) => ASYNC,
        _ => FAIL,
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn VixDiskLib_ReadAsync(
    handle: *const Handle,
    start: u64,
    sectors: u64,
    buffer: *mut u8,
    callback: Callback,
    data: *mut c_void,
) -> VixError {
    let (buffer, data) = (buffer as usize, data as usize);
    queue(handle, Work { start, sectors, buffer, write: false, callback, data })
}

#[unsafe(no_mangle)]
pub extern "C" fn VixDiskLib_WriteAsync(
    handle: *const Handle,
    start: u64,
    sectors: u64,
    buffer: *const u8,
    callback: Callback,
    data: *mut c_void,
) -> VixError {
    let (buffer, data) = (buffer as usize, data as usize);
    queue(handle, Work { start, sectors, buffer, write: true, callback, data })
}

extern "C" fn nothing(_data: *mut c_void, _error: VixError) {}

fn at_once(handle: *const Handle, start: u64, sectors: u64, buffer: usize, write: bool) -> VixError {
    let work = Work { start, sectors, buffer, write, callback: nothing, data: 0 };
    perform(&unsafe { &*handle }.file, &work)
}

#[unsafe(no_mangle)]
pub extern "C" fn VixDiskLib_Read(handle: *const Handle, start: u64, sectors: u64, buffer: *mut u8) -> VixError {
    at_once(handle, start, sectors, buffer as usize, false)
}

#[unsafe(no_mangle)]
pub extern "C" fn VixDiskLib_Write(handle: *const Handle, start: u64, sectors: u64, buffer: *const u8) -> VixError {
    at_once(handle, start, sectors, buffer as usize, true)
}

#[unsafe(no_mangle)]
pub extern "C" fn VixDiskLib_Create() -> VixError {
    NOT_SUPPORTED
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn VixDiskLib_Flush(handle: *const Handle) -> VixError {
    if unsafe { &*handle }.file.sync_data().is_ok() { OK } else { FAIL }
}

#[unsafe(no_mangle)]
pub extern "C" fn VixDiskLib_Wait(_handle: *const Handle) -> VixError {
    // The worker calls back by itself; nbdkit waits only before it closes, and closing waits for the worker.
    OK
}

/// Ranges that are allocated, in whole chunks, as a list whose first word is its length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn VixDiskLib_QueryAllocatedBlocks(
    handle: *const Handle,
    start: u64,
    sectors: u64,
    chunk: u64,
    out: *mut *mut u64,
) -> VixError {
    const DATA: c_int = 3;
    const HOLE: c_int = 4;
    let file = &unsafe { &*handle }.file;
    let chunk = chunk.max(1);
    let (mut at, end) = (start, start + sectors);
    let mut blocks: Vec<Block> = Vec::new();
    while at < end {
        let seek = |from: u64, whence| unsafe { lseek(file.as_raw_fd(), (from * SECTOR) as i64, whence) };
        let data = seek(at, DATA);
        if data < 0 || data as u64 / SECTOR >= end {
            break;
        }
        let begin = data as u64 / SECTOR;
        let hole = (seek(begin, HOLE).max(0) as u64).div_ceil(SECTOR);
        let first = (begin / chunk * chunk).max(at);
        let last = (hole.div_ceil(chunk) * chunk).min(end).max(first + 1);
        blocks.push(Block { offset: first, length: last - first });
        at = last;
    }
    // The list is a count, padding, and the blocks; its own length is kept before it for freeing.
    let mut list = Vec::with_capacity(2 + blocks.len() * 2);
    list.push(2 + blocks.len() as u64 * 2);
    list.push(blocks.len() as u64);
    for block in &blocks {
        list.extend([block.offset, block.length]);
    }
    let raw = Box::into_raw(list.into_boxed_slice()) as *mut u64;
    unsafe { *out = raw.add(1) };
    OK
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn VixDiskLib_FreeBlockList(list: *mut u64) -> VixError {
    if !list.is_null() {
        let raw = unsafe { list.sub(1) };
        let length = unsafe { *raw } as usize;
        drop(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(raw, length)) });
    }
    OK
}
