//! Prints the OpenAPI document, for tools that check it or make clients from it.

use std::io::Write;

fn main() -> std::io::Result<()> {
    std::io::stdout().write_all(sendense_hub::http::openapi_document().as_bytes())
}
