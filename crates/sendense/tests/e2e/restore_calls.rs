//! The calls with which open points are browsed: each answers with the fields that clients of this design expect, and with no
//! others than the published document says.

use crate::files::{ask, ext4, json, open, point};
use crate::hub::{Hub, field, text};
use serde_json::Value;
use std::collections::BTreeMap;

/// What a reply must hold, whatever else it tells.
const MOUNT: &[&str] = &[
    "mount_id",
    "backup_id",
    "disk_id",
    "status",
    "backend",
    "mount_path",
    "nbd_device",
    "filesystem_type",
    "volumes",
    "created_at",
    "expires_at",
];
const FILE: &[&str] =
    &["name", "path", "path_encoded", "type", "size", "mode", "uid", "gid", "modified_time", "target"];
const RESOURCES: &[&str] =
    &["active_mounts", "max_mounts", "available_slots", "allocated_devices", "device_utilization_percent"];
const CLEANUP: &[&str] =
    &["running", "interval_seconds", "idle_timeout_seconds", "last_run_at", "total_cleaned", "active_mounts"];
const VOLUME: &[&str] = &["volume_id", "type", "label", "size_bytes", "readable", "reason", "consistency", "backend"];
const PROBLEM: &[&str] = &["success", "error", "code", "details", "timestamp"];

/// The document that a hub publishes.
struct Document(Value);

impl Document {
    /// A schema with what it refers to in its place.
    fn resolved<'a>(&'a self, schema: &'a Value) -> &'a Value {
        match schema["$ref"].as_str() {
            Some(reference) => self.resolved(self.0.pointer(reference.trim_start_matches('#')).unwrap()),
            None => schema,
        }
    }

    /// The fields of an object, and whether each must be there.
    fn fields<'a>(&'a self, schema: &'a Value) -> BTreeMap<&'a str, (&'a Value, bool)> {
        let schema = self.resolved(schema);
        let mut fields = BTreeMap::new();
        for part in schema["allOf"].as_array().into_iter().flatten() {
            fields.extend(self.fields(part));
        }
        let required: Vec<&str> =
            schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        for (name, of) in schema["properties"].as_object().into_iter().flatten() {
            fields.insert(name, (of, required.contains(&name.as_str())));
        }
        fields
    }

    /// Fails where a value is not what its schema says.
    fn check(&self, schema: &Value, value: &Value, at: &str) {
        let schema = self.resolved(schema);
        if let Some(choices) = schema["oneOf"].as_array() {
            let is_null = |choice: &&Value| choice["type"] == "null";
            let choice = choices.iter().find(|choice| is_null(choice) == value.is_null());
            return self.check(choice.unwrap_or_else(|| panic!("{at}: {value}")), value, at);
        }
        match value {
            Value::Object(object) => {
                let fields = self.fields(schema);
                assert!(!fields.is_empty(), "{at} has no fields in the document");
                for (name, value) in object {
                    let (of, _) = fields.get(&**name).unwrap_or_else(|| panic!("{at}.{name} is not in the document"));
                    self.check(of, value, &format!("{at}.{name}"));
                }
                for (name, _) in fields.iter().filter(|(_, (_, required))| *required) {
                    assert!(object.contains_key(*name), "{at} lacks {name}");
                }
            }
            Value::Array(list) => {
                assert_eq!(schema["type"], "array", "{at}");
                list.iter().for_each(|item| self.check(&schema["items"], item, &format!("{at}[]")));
            }
            scalar => {
                let name = match scalar {
                    Value::Null => "null",
                    Value::Bool(_) => "boolean",
                    Value::String(_) => "string",
                    Value::Number(number) if number.is_f64() => "number",
                    _ => "integer",
                };
                let kinds = match &schema["type"] {
                    Value::Array(kinds) => kinds.clone(),
                    kind => vec![kind.clone()],
                };
                assert!(kinds.iter().any(|kind| kind == name), "{at}: {scalar}, not one of {kinds:?}");
                let allowed = schema["enum"].as_array();
                assert!(allowed.is_none_or(|allowed| allowed.contains(scalar)), "{at}: {scalar}");
            }
        }
    }
}

/// Asks, and gives a reply that has the expected status and is as the document says.
fn call(hub: &Hub, document: &Document, method: &str, route: &str, below: &str, args: &[&str], status: u16) -> Value {
    let (got, headers, body) = ask(hub, &[&["-X", method], args].concat(), below);
    assert_eq!(got, status, "{method} {below}: {headers}{}", text(&body));
    let operation = &document.0["paths"][format!("/api/v1{route}")][method.to_lowercase()];
    let reply = document.resolved(&operation["responses"][status.to_string()]);
    let schema = &reply["content"]["application/json"]["schema"];
    assert!(!schema.is_null(), "{method} {route} documents no {status}");
    let body = json(&body);
    document.check(schema, &body, below);
    body
}

fn has(value: &Value, fields: &[&str]) {
    for field in fields {
        assert!(value.as_object().unwrap().contains_key(*field), "no {field} in {value:#}");
    }
}

#[test]
fn each_call_answers_as_it_is_documented() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    ext4(
        dir,
        16,
        "-L named",
        "mkdir etc; echo hello > etc/file; chmod 0640 etc/file; ln -s file etc/link; mkfifo etc/pipe",
    );
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    let point = point(&hub);
    let document = Document(json(&ask(&hub, &[], "/openapi.json").2));
    let call = |method: &str, route: &str, below: &str, args: &[&str], status| {
        call(&hub, &document, method, route, below, args, status)
    };

    let body = format!("{{\"backup_id\": \"{point}\", \"disk_id\": 0}}");
    let posted = ["-H", "Content-Type: application/json", "-d", &body];
    let mount = call("POST", "/restore/mount", "/restore/mount", &posted, 201);
    has(&mount, MOUNT);
    assert_eq!((&mount["success"], field(&mount, "backup_id")), (&true.into(), &*point));
    assert_eq!((field(&mount, "status"), field(&mount, "backend")), ("mounted", "native"));
    assert_eq!((field(&mount, "filesystem_type"), &mount["disk_id"]), ("ext4", &0.into()));
    assert!(mount["mount_path"].is_null() && mount["nbd_device"].is_null(), "{mount:#}");
    let id = field(&mount, "mount_id").to_owned();
    let mounts = call("GET", "/restore/mounts", "/restore/mounts", &[], 200);
    has(&mounts["mounts"][0], MOUNT);
    assert_eq!((&mounts["total"], field(&mounts["mounts"][0], "mount_id")), (&1.into(), &*id));

    let of = |rest: &str| format!("/restore/{id}/{rest}");
    let volumes = call("GET", "/restore/{mount_id}/volumes", &of("volumes"), &[], 200);
    has(&volumes["volumes"][0], VOLUME);
    assert_eq!(field(&volumes["volumes"][0], "label"), "named");
    let files = call("GET", "/restore/{mount_id}/files", &of("files?path=/etc&volume=disk"), &[], 200);
    let listed: Vec<(&str, &str, &str)> = (files["files"].as_array().unwrap().iter())
        .map(|file| {
            has(file, FILE);
            (field(file, "name"), field(file, "type"), field(file, "mode"))
        })
        .collect();
    assert_eq!(listed[..2], [("file", "file", "0640"), ("link", "symlink", "0777")]);
    assert_eq!((listed[2].0, listed[2].1, listed.len()), ("pipe", "other", 3));
    assert_eq!((&files["files"][0]["size"], field(&files["files"][1], "target")), (&6.into(), "file"));
    let page = call("GET", "/restore/{mount_id}/files", &of("files?path=/etc&limit=1&offset=1"), &[], 200);
    assert_eq!((&page["total"], field(&page["files"][0], "name")), (&3.into(), "link"));
    assert_eq!(page["files"].as_array().unwrap().len(), 1);
    for (path, resolved) in [("/etc/file", None), ("/etc/link", Some("/etc/file")), ("/etc", None)] {
        let info = call("GET", "/restore/{mount_id}/file-info", &of(&format!("file-info?path={path}")), &[], 200);
        has(&info["file"], FILE);
        assert_eq!((field(&info["file"], "path"), info["file"]["resolved_path_encoded"].as_str()), (path, resolved));
    }
    let found = call("GET", "/restore/{mount_id}/search", &of("search?path=/&name=fi*"), &[], 200);
    has(&found["files"][0], FILE);
    assert_eq!((&found["total"], field(&found["files"][0], "path")), (&1.into(), "/etc/file"));
    let resources = call("GET", "/restore/resources", "/restore/resources", &[], 200);
    has(&resources, RESOURCES);
    let places = ["active_mounts", "max_mounts", "available_slots"].map(|name| resources[name].as_u64().unwrap());
    assert_eq!((places, &resources["device_utilization_percent"]), ([1, 8, 7], &12.5.into()));
    let cleanup = call("GET", "/restore/cleanup-status", "/restore/cleanup-status", &[], 200);
    has(&cleanup, CLEANUP);
    assert_eq!((&cleanup["interval_seconds"], &cleanup["idle_timeout_seconds"]), (&60.into(), &3600.into()));
    assert_eq!((&cleanup["running"], &cleanup["active_mounts"]), (&true.into(), &1.into()));

    // What is fetched is saved and never shown, under the type that the document says.
    for (rest, route, name, begins) in [
        ("download?path=/etc/file", "download", "file", &b"hello"[..]),
        ("download-directory?path=/etc&format=zip", "download-directory", "etc.zip", b"PK\x03\x04"),
        ("download-directory?path=/etc&format=tar.gz", "download-directory", "etc.tar.gz", b"\x1f\x8b"),
    ] {
        let (status, headers, body) = ask(&hub, &[], &of(rest));
        let documented =
            &document.0["paths"][format!("/api/v1/restore/{{mount_id}}/{route}")]["get"]["responses"]["200"];
        let kind = documented["content"].as_object().unwrap().keys().next().unwrap();
        assert!(status == 200 && headers.contains(&format!("content-type: {kind}\r\n")), "{headers}");
        assert!(headers.contains(&format!("content-disposition: attachment; filename=\"{name}\"")), "{headers}");
        assert!(body.starts_with(begins), "{rest}");
    }

    // What is wrong is said in one form.
    let wrong = "/restore/{mount_id}/volumes/{volume}/unlock";
    let key = ["-H", "Content-Type: application/json", "-d", "{\"key\": \"none\"}"];
    for (method, route, below, args, status) in [
        ("GET", "/restore/{mount_id}/files", of("files?path=/none"), &[][..], 404),
        ("GET", "/restore/{mount_id}/files", of("files?path=/../etc"), &[], 400),
        ("GET", "/restore/{mount_id}/files", of("files?path=/&odd=1"), &[], 400),
        ("GET", "/restore/{mount_id}/file-info", of("file-info"), &[], 400),
        ("GET", "/restore/{mount_id}/search", of("search?path=/"), &[], 400),
        ("GET", "/restore/{mount_id}/download", of("download?path=/etc/pipe"), &[], 400),
        ("GET", "/restore/{mount_id}/download-directory", of("download-directory?path=/etc&format=rar"), &[], 400),
        ("GET", "/restore/{mount_id}/volumes", "/restore/mnt-none/volumes".into(), &[], 404),
        ("GET", "/restore/mounts", "/restore/mounts?odd=1".into(), &[], 400),
        ("POST", wrong, of("volumes/p7/unlock"), &key, 404),
        ("POST", "/restore/mount", "/restore/mount".into(), &key, 400),
    ] {
        let problem = call(method, route, &below, args, status);
        has(&problem, PROBLEM);
        assert_eq!(problem["success"], false);
    }
    // Another point of view on the same point counts, and the end of the first one is its own.
    let other = open(&hub, &point);
    let closed = call("DELETE", "/restore/{mount_id}", &format!("/restore/{id}"), &[], 200);
    assert_eq!(closed["success"], true);
    call("DELETE", "/restore/{mount_id}", &format!("/restore/{id}"), &[], 404);
    let mounts = call("GET", "/restore/mounts", "/restore/mounts", &[], 200);
    assert_eq!((&mounts["total"], field(&mounts["mounts"][0], "mount_id")), (&1.into(), &*other));
}
