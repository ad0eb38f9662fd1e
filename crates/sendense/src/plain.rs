//! Text from outside, made safe to print.
//!
//! Names, labels, paths and messages come from guests, hypervisors and other people's requests. Printed as they are, they
//! could move the cursor, rewrite earlier lines, set the terminal's title or fake a row of a table. Invariant: nothing
//! that leaves here makes a terminal do anything but show letters in the order in which they are stored.

use std::borrow::Cow;
use std::fmt::Write;

/// The text in one line, every character that a terminal would act upon written as `\u{…}`.
pub fn plain(text: &str) -> Cow<'_, str> {
    escaped(text, |out, letter| match letter {
        '\n' => out.push_str("\\n"),
        '\t' => out.push_str("\\t"),
        '\r' => out.push_str("\\r"),
        // A String takes all that is written to it.
        other => write!(out, "\\u{{{:x}}}", u32::from(other)).unwrap_or_default(),
    })
}

/// JSON that means the same: such characters stand only within strings there, and JSON has its own way to write them. Line
/// feeds stay, they are between the values.
pub fn plain_json(json: &str) -> String {
    let lines = json.split('\n').map(|line| {
        escaped(line, |out, letter| {
            let mut units = [0; 2];
            for unit in letter.encode_utf16(&mut units) {
                write!(out, "\\u{unit:04x}").unwrap_or_default();
            }
        })
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn escaped(text: &str, escape: impl Fn(&mut String, char)) -> Cow<'_, str> {
    if !text.chars().any(acts) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for letter in text.chars() {
        if acts(letter) { escape(&mut out, letter) } else { out.push(letter) }
    }
    Cow::Owned(out)
}

/// Control characters (C0, DEL and C1, which some terminals take for escape sequences), line and paragraph separators, and
/// what turns the direction of writing around or is not seen at all.
fn acts(letter: char) -> bool {
    letter.is_control()
        || matches!(letter,
            '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_a_terminal_acts_upon_is_written_out() {
        assert_eq!(plain("web-01 (Zürich) 日本"), "web-01 (Zürich) 日本");
        assert_eq!(plain("a\u{1b}[2J\u{1b}]0;root\u{7}b"), "a\\u{1b}[2J\\u{1b}]0;root\\u{7}b");
        assert_eq!(plain("web\nvm-2  completed\r\t"), "web\\nvm-2  completed\\r\\t");
        assert_eq!(plain("\u{9b}31m\u{202e}gpj.exe\u{7f}"), "\\u{9b}31m\\u{202e}gpj.exe\\u{7f}");
    }

    proptest! {
        #[test]
        fn one_line_of_harmless_letters(text in any::<String>()) {
            prop_assert!(!plain(&text).chars().any(acts));
        }

        #[test]
        fn json_stays_what_it_says(text in any::<String>()) {
            let value = serde_json::json!({ "name": text, "more": ["\u{9b}", "\u{202e}"] });
            let printed = plain_json(&serde_json::to_string_pretty(&value).unwrap());
            prop_assert!(!printed.replace('\n', "").chars().any(acts));
            prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&printed).unwrap(), value);
        }
    }
}
