//! Sessions that end, answers that do not, faults with their particulars, tasks.

use super::{Script, object};
use crate::change::Question;
use crate::{Error, FaultKind, KeptAlive, Ref};
use sendense_block::{ByteLen, ByteOffset, Cancel, Extent};
use std::time::{Duration, Instant};

fn machine() -> Ref {
    Ref::new("VirtualMachine", "vm-1")
}

/// A task that ends as told, in its first answer.
fn task(state: &str, more: &str) -> String {
    let object = object("Task", "task-1", &[("info.state", state)]).replace("</objects>", "");
    format!("<returnval>{object}{more}</objects></returnval>")
}

#[test]
fn a_session_that_ended_costs_one_login() {
    let script = Script::new(|method, nth| match (method, nth) {
        ("CurrentTime", 1) => Err("NotAuthenticated".into()),
        _ => Ok(String::new()),
    });
    let vim = script.connect();
    vim.keep_alive(&Cancel::new()).unwrap();
    assert_eq!((script.count("Login"), script.count("CurrentTime")), (2, 2));
}

#[test]
fn a_session_is_kept_alive_until_it_is_ended() {
    let script = Script::new(|method, nth| match (method, nth) {
        ("CurrentTime", 2) => Err("HostCommunication".into()),
        _ => Ok(String::new()),
    });
    let calling = |period| KeptAlive::calling_every(period, script.connect());
    let alive = calling(Duration::from_millis(1));
    let patience = Instant::now() + Duration::from_secs(60);
    // A call that fails is not the last one.
    while script.count("CurrentTime") < 4 {
        assert!(Instant::now() < patience, "nobody calls");
        std::thread::sleep(Duration::from_millis(1));
    }
    alive.log_out(&Cancel::new());
    let sent = || script.sent.lock().iter().map(|(method, _)| method.clone()).collect::<Vec<_>>();
    assert_eq!(sent().last().map(String::as_str), Some("Logout"), "a call came after the session's end");
    drop(alive);
    // Nobody waits for the next call when it is let go.
    drop(calling(Duration::from_secs(3600)));
    assert_eq!(script.count("Login"), 2);
}

#[test]
fn an_account_that_lost_its_rights_is_told_and_not_tried_for_ever() {
    let script = Script::new(|method, _| match method {
        "CurrentTime" => Err("NotAuthenticated".into()),
        _ => Ok(String::new()),
    });
    let error = script.connect().keep_alive(&Cancel::new()).unwrap_err();
    assert_eq!((error.kind(), script.count("Login")), (Some(FaultKind::NotAuthenticated), 2));
}

#[test]
fn a_view_that_died_with_its_session_is_made_anew() {
    let script = Script::new(|method, nth| match (method, nth) {
        ("CreateContainerView", _) => Ok("<returnval type='ContainerView'>v</returnval>".into()),
        ("RetrievePropertiesEx", 1) => Err("NotAuthenticated".into()),
        ("RetrievePropertiesEx", 2) => Err("ManagedObjectNotFound".into()),
        ("RetrievePropertiesEx", _) => {
            Ok(format!("<returnval>{}</returnval>", object("VirtualMachine", "vm-1", &[("name", "web")])))
        }
        _ => Ok(String::new()),
    });
    assert_eq!(script.connect().machines(&Cancel::new()).unwrap()[0].name, "web");
    assert_eq!(script.count("CreateContainerView"), 2);
}

#[test]
fn pages_without_end_are_refused() {
    let script = Script::new(|method, nth| match method {
        "CreateContainerView" => Ok("<returnval type='ContainerView'>v</returnval>".into()),
        "RetrievePropertiesEx" => {
            Ok(format!("<returnval><token>t</token>{}</returnval>", object("VirtualMachine", "vm-1", &[])))
        }
        "ContinueRetrievePropertiesEx" if nth < 3 => {
            Ok(format!("<returnval><token>t</token>{}</returnval>", object("VirtualMachine", "vm-2", &[])))
        }
        "ContinueRetrievePropertiesEx" => Ok("<returnval><token>t</token></returnval>".into()),
        _ => Ok(String::new()),
    });
    let error = script.connect().machines(&Cancel::new()).unwrap_err();
    assert!(matches!(error, Error::Reply { .. }), "{error}");
    assert_eq!(script.count("DestroyView"), 1);
}

#[test]
fn a_fault_tells_what_is_missing() {
    let script = Script::new(|method, _| match method {
        "CreateSnapshot_Task" => Err("NoPermission".into()),
        _ => Ok(String::new()),
    });
    let error = script.connect().create_snapshot(&machine(), "n", "d", false, &Cancel::new()).unwrap_err();
    assert_eq!(error.kind(), Some(FaultKind::NoPermission));
    assert_eq!(error.fault().unwrap().detail("privilegeId"), Some("VM.X"));
    assert_eq!(error.to_string(), "CreateSnapshot_Task: it said NoPermission [NoPermission], privilegeId VM.X");
}

#[test]
fn a_task_that_fails_tells_its_fault() {
    let script = Script::new(|method, nth| match (method, nth) {
        ("CreateSnapshot_Task", _) => Ok("<returnval type='Task'>task-1</returnval>".into()),
        ("RetrievePropertiesEx", 1) => Ok(task("running", "")),
        ("RetrievePropertiesEx", _) => Ok(task(
            "error",
            "<propSet><name>info.error</name><val xsi:type='LocalizedMethodFault'><fault \
             xsi:type='FilesystemQuiesceFault'/><localizedMessage>no</localizedMessage></val></propSet>",
        )),
        _ => Ok(String::new()),
    });
    let error = script.connect().create_snapshot(&machine(), "n", "d", true, &Cancel::new()).unwrap_err();
    assert_eq!(error.kind(), Some(FaultKind::FilesystemQuiesceFault), "{error}");
}

#[test]
fn a_stop_cancels_what_is_made_and_not_what_is_taken_away() {
    for (method, cancelled) in [("CreateSnapshot_Task", true), ("RemoveSnapshot_Task", false)] {
        let cancel = Cancel::new();
        let stop = cancel.clone();
        let script = Script::new(move |method, _| match method {
            "RetrievePropertiesEx" => {
                stop.cancel();
                Ok(task("running", ""))
            }
            method if method.ends_with("_Task") => Ok("<returnval type='Task'>task-1</returnval>".into()),
            _ => Ok(String::new()),
        });
        let vim = script.connect();
        let stopped = match method {
            "CreateSnapshot_Task" => vim.create_snapshot(&machine(), "n", "d", false, &cancel).map(drop),
            _ => vim.remove_snapshot(&Ref::new("VirtualMachineSnapshot", "s"), &cancel),
        };
        assert!(matches!(stopped, Err(Error::Cancelled)), "{stopped:?}");
        let sent = script.sent.lock();
        let (last, body) = sent.last().unwrap();
        assert_eq!(last == "CancelTask", cancelled, "{last}");
        assert!(!cancelled || body.contains("<_this type=\"Task\">task-1</_this></CancelTask>"), "{body}");
    }
}

fn areas(answer: impl Fn(usize) -> Result<String, String> + Send + Sync + 'static) -> crate::Result<Vec<Extent>> {
    let script = Script::new(move |method, nth| match method {
        "QueryChangedDiskAreas" => answer(nth),
        _ => Ok(String::new()),
    });
    let (vm, snapshot) = (machine(), Ref::new("VirtualMachineSnapshot", "s"));
    let question =
        Question { machine: &vm, snapshot: &snapshot, disk_key: 2000, capacity: ByteLen(1 << 20), since: "52 a/3" };
    script.connect().changed_areas(&question, &Cancel::new()).map(|set| set.as_slice().to_vec())
}

#[test]
fn areas_are_asked_for_until_the_end_of_the_disk() {
    let answer = |start: u64, length: u64, at: u64| {
        format!(
            "<returnval><startOffset>{start}</startOffset><length>{length}</length><changedArea><start>{at}</start>\
             <length>512</length></changedArea></returnval>"
        )
    };
    let pages = move |nth| match nth {
        1 => Ok(answer(0, 1 << 18, 0)),
        2 => Ok(answer(1 << 18, 1 << 19, 1 << 19)),
        3 => Ok(answer(3 << 18, 1 << 18, (1 << 20) - 512)),
        _ => Err("InvalidArgument".into()),
    };
    let at = |start: u64| Extent::between(ByteOffset(start), ByteOffset(start + 512));
    assert_eq!(areas(pages).unwrap(), [at(0), at(1 << 19), at((1 << 20) - 512)]);
    // A server that spins, one that skips, one that says nothing.
    for bad in [answer(0, 0, 0), answer(512, 1 << 20, 512), String::new()] {
        let error = areas(move |_| Ok(bad.clone())).unwrap_err();
        assert!(matches!(error, Error::Reply { .. }), "{error}");
    }
}

#[test]
fn secrets_are_escaped_and_not_shown() {
    let script = Script::new(|_, _| Ok(String::new()));
    let vim = script.connect();
    let sent = script.sent.lock();
    assert!(sent[1].1.contains("<userName>a&amp;b</userName><password>p&lt;w</password>"), "{}", sent[1].1);
    assert!(!format!("{vim:?}").contains("p<w"));
}
