//! Manifests whose digest is right.

use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// The input as a manifest with the right digest: the inner object of a manifest, or the whole input as one.
pub fn sealed(bytes: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(bytes).ok()?;
    let body = match serde_json::from_str::<BTreeMap<String, &RawValue>>(text) {
        Ok(fields) => fields.get("manifest").map_or(text, |body| body.get()),
        Err(_) => text,
    };
    let body = body.trim();
    let digest = blake3::hash(body.as_bytes()).to_hex();
    Some(format!(r#"{{"format":"sendense-manifest","version":1,"digest":"{digest}","manifest":{body}}}"#).into_bytes())
}

/// Manifests of a full point and of one on it, as files and as inner objects; an owner record; an intent.
pub fn seeds() -> Vec<Vec<u8>> {
    let files = crate::point::files();
    let mut seeds = files.manifests;
    for at in 0..seeds.len() {
        let fields: BTreeMap<String, &RawValue> = serde_json::from_slice(&seeds[at]).expect("a manifest of ours");
        let body = fields["manifest"].get().as_bytes().to_vec();
        seeds.push(body);
    }
    seeds.push(files.owner);
    let intent = r#"{"format":"sendense-draft-intent","version":1,"backup_id":"bk-fuzz",
        "files":["disk-0/bk-fuzz.qcow2","disk-0/bk-fuzz.digests"]}"#;
    seeds.push(intent.as_bytes().to_vec());
    seeds
}
