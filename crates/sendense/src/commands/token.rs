//! `sendense token`.

use crate::args::TokenCommand;
use crate::context::Context;
use crate::output::{json, line, say, table as show};
use crate::tables;
use anyhow::Result;
use sendense_api::reply::{DoneReply, NewTokenReply, TokenListReply};
use sendense_api::{CreateToken, ListQuery};

/// Runs the command.
pub async fn run(context: &Context, command: TokenCommand) -> Result<u8> {
    let client = &context.client;
    match command {
        TokenCommand::Create { name, role } => {
            let made = client.create_token(&CreateToken { name, role }).await?;
            if context.json {
                json(&NewTokenReply::from(made))?;
            } else {
                line(&made.secret);
                say(format!(
                    "token {} for {}: keep it now, it is not shown again",
                    made.token.token_id, made.token.name
                ));
            }
        }
        TokenCommand::List => {
            let page = client.list_tokens(&ListQuery::default()).await?;
            if context.json {
                json(&TokenListReply::from(page))?;
            } else {
                show(tables::tokens(&page.items));
            }
        }
        TokenCommand::Revoke { token_id } => {
            client.revoke_token(&token_id).await?;
            if context.json {
                json(&DoneReply::new(format!("token {token_id} revoked")))?;
            } else {
                say(format!("token {token_id} is revoked"));
            }
        }
    }
    Ok(0)
}
