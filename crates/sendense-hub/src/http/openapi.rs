//! The OpenAPI document: what the router says of itself, with what holds for every call added here once.

use super::operations::ROLE_EXTENSION;
use super::router;
use sendense_api::ProblemBody;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    ComponentsBuilder, Content, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder, Ref, RefOr, Response,
    ResponseBuilder,
};
use utoipa::{PartialSchema, ToSchema};

const BEARER: &str = "bearer";
const NODE: &str = "node_certificate";

/// The document before the routes say what they are.
pub(super) fn base() -> OpenApi {
    let bearer = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
    let node = SecurityScheme::MutualTls {
        description: Some("The certificate that a node got when it enrolled.".to_owned()),
        deprecated: None,
        extensions: None,
    };
    let license = LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0")).build();
    let info = InfoBuilder::new()
        .title("Sendense")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "Agentless backup of virtual machines into plain QCOW2 chains. Every answer is JSON with `success`; a failure \
             carries `error`, `code`, `details` and `timestamp`. Lists take `limit` and `offset` and tell `total`. Where a \
             call takes the id of a VM, a repository, a source or a token it takes the unique name too. An unknown query \
             parameter or body field is a failure. `x-role` tells the least role that a call needs, or that it is for nodes.",
        ))
        .license(Some(license));
    let mut components = ComponentsBuilder::new()
        .security_scheme(BEARER, bearer)
        .security_scheme(NODE, node)
        .schema(ProblemBody::name(), ProblemBody::schema())
        .schema("ProblemCode", sendense_api::schema::ProblemCode::schema());
    for (status, description) in FAILURES {
        components = components.response(failure_name(status), problem(description));
    }
    OpenApiBuilder::new().info(info.build()).components(Some(components.build())).build()
}

/// Failures that many calls have. Those that only some have, or that mean more there, stand with the call.
const FAILURES: [(&str, &str); 7] = [
    ("400", "A field or parameter is missing, unknown or wrong."),
    ("401", "No token, or one that is not known."),
    (
        "403",
        "The token's role does not allow this, or the call comes by a name or from a page that the hub does not serve.",
    ),
    ("404", "There is no such thing."),
    ("413", "The body is too large."),
    ("500", "A fault of the hub's."),
    ("503", "A limit is reached, or something is not there now; `Retry-After` tells when to come again."),
];

fn failure_name(status: &str) -> String {
    format!("Problem{status}")
}

/// The document with the answers and the security that every call has.
pub(super) fn complete(mut document: OpenApi) -> OpenApi {
    for (path, item) in &mut document.paths.paths {
        let operations = [
            (false, &mut item.get),
            (true, &mut item.post),
            (true, &mut item.put),
            (true, &mut item.patch),
            (true, &mut item.delete),
        ];
        for (may_have_body, operation) in operations {
            let Some(operation) = operation else { continue };
            let extensions = operation.extensions.as_ref();
            let role = extensions.and_then(|all| all.get(ROLE_EXTENSION)).and_then(|role| role.as_str());
            let (is_public, is_for_nodes) = (role == Some("none"), role == Some("node"));
            if is_for_nodes {
                operation.security = Some(vec![SecurityRequirement::new(NODE, Vec::<String>::new())]);
            } else if !is_public {
                operation.security = Some(vec![SecurityRequirement::new(BEARER, Vec::<String>::new())]);
            }
            for (status, _) in FAILURES {
                let applies = match status {
                    "401" => !is_public,
                    "404" => path.contains('{'),
                    // Also one that should be empty.
                    "413" => may_have_body,
                    _ => true,
                };
                let responses = &mut operation.responses.responses;
                if applies && !responses.contains_key(status) {
                    let reference = RefOr::Ref(Ref::from_response_name(failure_name(status)));
                    responses.insert(status.to_owned(), reference);
                }
            }
        }
    }
    document
}

fn problem(description: &str) -> Response {
    let schema = Ref::from_schema_name(ProblemBody::name());
    ResponseBuilder::new().description(description).content("application/json", Content::new(Some(schema))).build()
}

/// The document of this version, as text with a line end.
pub fn document() -> String {
    text(&complete(router::documented().into_openapi()))
}

/// A document as text.
pub(super) fn text(document: &OpenApi) -> String {
    // The document is a tree of maps and texts; none of that can fail to become JSON.
    let mut text = document.to_pretty_json().expect("a tree of maps and texts is JSON");
    text.push('\n');
    text
}
