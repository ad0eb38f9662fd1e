//! Printing: data to stdout, talk to stderr, colours only on a terminal (and never with `NO_COLOR`).

use owo_colors::{OwoColorize, Stream};
use serde::Serialize;

/// Prints a reply as the API said it.
pub fn json(reply: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(reply)?);
    Ok(())
}

/// Says something to the person, beside the data.
pub fn say(text: impl AsRef<str>) {
    eprintln!("{}", text.as_ref());
}

/// Prints an error with its causes in one line.
pub fn error(error: &anyhow::Error) {
    eprintln!("{} {error:#}", "error:".if_supports_color(Stream::Stderr, |text| text.red()));
}

/// Green, yellow or red by what the word means.
pub fn state(word: &str) -> String {
    let stream = Stream::Stdout;
    match word {
        "completed" | "protected" | "ok" => word.if_supports_color(stream, |text| text.green()).to_string(),
        "failed" | "failing" | "corrupt" => word.if_supports_color(stream, |text| text.red()).to_string(),
        "running" | "pending" | "cancelled" | "unprotected" => {
            word.if_supports_color(stream, |text| text.yellow()).to_string()
        }
        other => other.to_owned(),
    }
}

/// Bytes for people: `1.5 GiB`.
pub fn bytes(count: u64) -> String {
    bytesize::ByteSize::b(count).display().iec().to_string()
}

/// Seconds for people: `1m 05s`.
pub fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 60.0 => format!("{s:.1}s"),
        s if s < 3600.0 => format!("{}m {:02}s", (s / 60.0) as u64, (s % 60.0) as u64),
        s => format!("{}h {:02}m", (s / 3600.0) as u64, (s % 3600.0 / 60.0) as u64),
    }
}

/// A moment for people: to the second, UTC.
pub fn moment(at: sendense_types::Timestamp) -> String {
    at.to_jiff().strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// The text, or a dash.
pub fn or_dash(text: Option<impl ToString>) -> String {
    text.map_or_else(|| "-".into(), |text| text.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_for_people() {
        assert_eq!([duration(0.44), duration(65.0), duration(7300.0)], ["0.4s", "1m 05s", "2h 01m"]);
        assert_eq!(bytes(3 << 30), "3.0 GiB");
        assert_eq!(moment(sendense_types::Timestamp::from_micros(1_700_000_000_123_456)), "2023-11-14 22:13:20Z");
    }
}
