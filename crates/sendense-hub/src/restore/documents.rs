//! What a point recorded of its machine, for the source that will make one of it.

use sendense_repo::manifest::{Content, Manifest};
use sendense_source::ConfigDocument;

/// The documents that are text; a source describes its machines in no other form.
pub(crate) fn documents(manifest: &Manifest) -> Vec<ConfigDocument> {
    let texts = manifest.documents.iter().filter_map(|document| match &document.content {
        Content::Text(text) => {
            Some(ConfigDocument { kind: document.name.clone(), content: Some(text.clone()), missing: None })
        }
        Content::Hex(_) => None,
    });
    texts.collect()
}
