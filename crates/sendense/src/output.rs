//! Printing: data to stdout, talk to stderr, colours only on a terminal (and never with `NO_COLOR`). Everything passes
//! [`plain`] on its way out.

use crate::plain::{plain, plain_json};
use owo_colors::{OwoColorize, Stream};
use serde::Serialize;
use std::fmt::Display;
use std::io::{ErrorKind, Write};

/// Prints a reply as the API said it.
pub fn json(reply: &impl Serialize) -> anyhow::Result<()> {
    out(plain_json(&serde_json::to_string_pretty(reply)?));
    Ok(())
}

/// Prints a table.
pub fn table(table: impl std::borrow::Borrow<crate::tables::Table>) {
    out(table.borrow());
}

/// Prints a line of data.
pub fn line(text: impl AsRef<str>) {
    out(plain(text.as_ref()));
}

/// Prints a line of data that begins with a coloured word.
pub fn verdict(word: &str, text: impl AsRef<str>) {
    out(format_args!("{} {}", state(word), plain(text.as_ref())));
}

/// Prints bytes of data as they are.
pub fn raw(data: &[u8]) {
    let mut stdout = std::io::stdout().lock();
    ended(stdout.write_all(data).and_then(|()| stdout.flush()));
}

/// Whoever reads may have seen enough (`| head`): then there is nobody to print for, and nothing went wrong.
fn out(text: impl Display) {
    ended(writeln!(std::io::stdout(), "{text}"));
}

fn ended(printed: std::io::Result<()>) {
    match printed {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => {
            self::error(&[format!("print: {error}")]);
            std::process::exit(crate::exit::FAILED.into());
        }
        Ok(()) => {}
    }
}

/// Says something to the person, beside the data.
pub fn say(text: impl AsRef<str>) {
    eprintln!("{}", plain(text.as_ref()));
}

/// Says what went wrong: `error:` in red, then indented lines.
pub fn error(lines: &[String]) {
    let mut lines = lines.iter().map(|text| plain(text));
    let first = lines.next().unwrap_or_default();
    eprintln!("{} {first}", "error:".if_supports_color(Stream::Stderr, |text| text.red()));
    for line in lines {
        eprintln!("  {line}");
    }
}

/// What a word says of the thing that it describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// All is well.
    Good,
    /// Look at it.
    Bad,
    /// Under way, or nobody decided yet.
    Open,
    /// It says nothing of that kind.
    None,
}

/// What a word of the API says.
pub fn mood(word: &str) -> Mood {
    match word {
        "completed" | "protected" | "ok" => Mood::Good,
        "failed" | "failing" | "corrupt" | "affected" => Mood::Bad,
        "running" | "pending" | "cancelled" | "unprotected" | "unreadable" => Mood::Open,
        _ => Mood::None,
    }
}

fn state(word: &str) -> String {
    let stream = Stream::Stdout;
    match mood(word) {
        Mood::Good => word.if_supports_color(stream, |text| text.green()).to_string(),
        Mood::Bad => word.if_supports_color(stream, |text| text.red()).to_string(),
        Mood::Open => word.if_supports_color(stream, |text| text.yellow()).to_string(),
        Mood::None => word.to_owned(),
    }
}

/// Whether stdout takes colours: a terminal that can, and nobody said `NO_COLOR`.
pub fn stdout_takes_colours() -> bool {
    state("ok") != "ok"
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
