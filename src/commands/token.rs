//! `twincast token`: a token for the HTTP API.

use serde_json::json;
use twincast_orchestrator::http::auth::Role;
use twincast_orchestrator::http::auth::tokens::new_token;

use crate::args::{TokenArgs, TokenRole};
use crate::failure::{ExitCode, Failure};
use crate::output::Output;

pub(crate) fn token(args: &TokenArgs, output: &Output) -> Result<ExitCode, Failure> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-._@+".contains(c);
    if args.name.is_empty() || args.name.len() > 64 || !args.name.chars().all(is_name) {
        let message = format!(
            "{:?} is not a valid name of a bearer; allowed: 1 to 64 letters, digits, and -._@+",
            args.name
        );
        return Err(Failure::message(ExitCode::Refused, message));
    }
    let role = match args.role {
        TokenRole::Viewer => Role::Viewer,
        TokenRole::Operator => Role::Operator,
        TokenRole::Approver => Role::Approver,
        TokenRole::Admin => Role::Admin,
    };
    let (token, line) = new_token(&args.name, role);
    let text = format!(
        "{token}\n\nThe token is shown only once. Add this line to api.tokens_file; the line does \
         not reveal the token:\n\n{line}"
    );
    output.result(&json!({ "token": token, "line": line }), &text);
    Ok(ExitCode::Success)
}
