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

/// Manifests of a full point and of one on it, as files and as inner objects; an owner record; an intent; a mark without its digest.
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
    seeds.push(mark());
    seeds
}

/// How far a disk of a draft is: one segment that is finished and one of two clusters that is not.
fn mark() -> Vec<u8> {
    let head = br#"{"backup_id":"bk-1","disk_id":0,"binding":"d","capacity_bytes":1048576,"parent_backup_id":null,"clusters":9,
        "arena_clusters":4,"raw_blocks":4,"compressed_blocks":1,"data_bytes":1}"#;
    let head_bytes = u32::try_from(head.len()).expect("a short head").to_le_bytes();
    let [none, one, two] = [0_u32, 1, 2].map(u32::to_le_bytes);
    let number = 1_u64.to_le_bytes();
    let segment_bytes = (64_u64 << 20).to_le_bytes();
    [
        &b"SENDMARK"[..],
        &one[..],
        &head_bytes,
        head,
        &none,
        &segment_bytes,
        &one,
        &number,
        &[9; 16],
        &one,
        &number,
        &two,
        &[7; 32],
    ]
    .concat()
}
