//! Logs: to standard error, pretty or JSON, never with secrets.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::config::{LogFormat, LogSettings};
use crate::progress::AboveBar;

/// Starts logging. `RUST_LOG` overrides the configured filter, and `--log` overrides both.
/// `is_service`: this process runs for long and logs its progress.
pub(crate) fn start(settings: &LogSettings, flag: Option<&str>, is_service: bool) {
    let environment = std::env::var("RUST_LOG")
        .ok()
        .filter(|filter| !filter.is_empty());
    let directives = flag.map(str::to_owned).or(environment);
    let mut filter = EnvFilter::builder()
        .parse_lossy(directives.unwrap_or_else(|| settings.filter_for(is_service).to_owned()));
    // Some libraries log transmitted data, tokens included: they stay silent regardless of the
    // filter. The broker's client logs faults it repairs itself, and the verifier of certificates
    // logs errors it returns to the caller; this program logs the important ones.
    let silent = twincast_iothub::LOG_TARGETS_WITH_SECRETS
        .iter()
        .chain(&["lapin", "rustls_platform_verifier"]);
    for target in silent {
        if let Ok(directive) = format!("{target}=off").parse() {
            filter = filter.add_directive(directive);
        }
    }
    let writer = BoxMakeWriter::new(|| AboveBar);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer);
    // A second start (in tests) keeps the first subscriber.
    let _ = match settings.format {
        LogFormat::Json => builder.json().try_init(),
        LogFormat::Pretty => builder
            .with_ansi(crate::output::colours_enabled_on_stderr())
            .try_init(),
    };
}
