//! Text of strangers, made fit to be shown on a terminal, on a page or in a log.

/// At most `most` characters, each of them printable ASCII: white space is a blank, and what else there is a question mark.
/// So nothing of it moves a cursor, turns the direction of reading, looks like another letter, or hides.
pub fn plain(text: &str, most: usize) -> String {
    let fit = |c: char| match c {
        ' '..='~' => c,
        c if c.is_whitespace() => ' ',
        _ => '?',
    };
    text.chars().take(most).map(fit).collect()
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn nothing_but_printable_ascii_is_left() {
        for (strange, shown) in [
            ("not here", "not here"),
            ("two\r\nlines", "two  lines"),
            ("\x1b[2Jgone\x07\x7f", "?[2Jgone??"),
            ("\u{9b}31m", "?31m"),
            ("live\u{202e}evil\u{2066}", "live?evil?"),
            ("zero\u{200b}\u{feff}width", "zero??width"),
            ("p\u{430}ypal \u{1f600}", "p?ypal ?"),
            ("\u{2028}line", " line"),
        ] {
            assert_eq!(plain(strange, 100), shown);
        }
        assert_eq!(plain(&"\u{e9}".repeat(1000), 3), "???");
    }
}
